import sqlite3
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.errors import ConfigError, DataError, RetrievalError
from llmlab.rag import Document, Embedder, Index
from llmlab.rag.fuse import RRF_K
from tests.rag.words_embedder import words_embedder

SOURCES = [
    f"corpus/{n}" for n in ("bridge.txt", "code.py", "guide/bees.md", "page.html", "paper.pdf")
]


def test_hits_lie_where_they_say(index: Index):
    assert index.sources() == SOURCES
    for mode in ("hybrid", "bm25", "dense"):
        hits = index.search("When was the Miravel bridge opened?", k=3, mode=mode)
        assert hits[0].doc == "corpus/bridge.txt"
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        for hit in hits:
            assert index.document(hit.doc).text[hit.start : hit.end] == hit.text


def test_hits_know_their_page(index: Index):
    (hit,) = index.search("Which lamp has the Corvin lighthouse?", k=1, mode="bm25")
    assert (hit.doc, hit.page) == ("corpus/paper.pdf", 1)


def test_adding_again_embeds_nothing_and_follows_the_folder(index: Index, corpus: Path):
    report = index.add_folder(corpus)
    assert (report.unchanged, report.added, report.chunks, report.embedded) == (5, 0, 0, 0)
    (corpus / "bridge.txt").write_text("The Miravel bridge was closed in 2001.")
    (corpus / "code.py").unlink()
    (corpus / "new.txt").write_text("Penguins march in winter.")
    report = index.add_folder(corpus)
    assert (report.added, report.updated, report.unchanged, report.deleted) == (1, 1, 3, 1)
    assert "2001" in index.search("Miravel bridge", k=1)[0].text
    assert not index.search("double", mode="bm25")
    index.verify()


def test_vectors_are_cached_by_text(index: Index):
    index.add([Document("a.txt", "Rare words here.")])
    assert index.delete("a.txt")
    assert not index.delete("a.txt")
    assert index.add([Document("b.txt", "Rare words here.")]).embedded == 0
    index.delete("b.txt")
    assert index.compact() == 1
    assert index.add([Document("b.txt", "Rare words here.")]).embedded == 1
    index.verify()


def test_other_chunk_sizes_cut_anew_and_embed_only_what_changed(corpus, tmp_path):
    with Index(tmp_path / "i", words_embedder(), chunk_tokens=40, overlap_tokens=8) as index:
        index.add_folder(corpus)
    with Index(tmp_path / "i", words_embedder(), chunk_tokens=100, overlap_tokens=8) as index:
        report = index.add_folder(corpus)
        assert report.updated == 5
        assert report.embedded < report.chunks


def test_dense_scores_are_cosines_and_equal_brute_force(index: Index):
    index.add(Document(f"{n}.txt", f"word{n} word{n % 7} word{n % 5}") for n in range(80))
    hits = index.search("word3 word1", k=20, mode="dense")
    encode = index.embedder.encode
    everything = [c for s in index.sources() for c in index.chunk(index.document(s))]
    cosines = encode([c.text for c in everything]) @ encode(["word3 word1"])[0]
    # float32 sums of 64 products in another order
    np.testing.assert_allclose([h.score for h in hits], np.sort(cosines)[::-1][:20], atol=1e-6)


def test_hybrid_is_reciprocal_rank_fusion_and_keeps_the_parts(index: Index):
    question = "steel towers and honey"
    ranks: dict[tuple, float] = {}
    for mode in ("bm25", "dense"):
        for rank, hit in enumerate(index.search(question, k=25, mode=mode), start=1):
            key = (hit.doc, hit.start)
            ranks[key] = ranks.get(key, 0) + 1 / (RRF_K + rank)
    hits = index.search(question, k=25)
    assert {(hit.doc, hit.start): hit.score for hit in hits} == pytest.approx(ranks)
    assert hits[0].scores.keys() == {"rrf", "bm25", "dense"}
    assert hits[0].scores["bm25"] > 0


@pytest.mark.parametrize(
    "text", ["", "AND", 'a" OR "', "NEAR(", "-x*", "^", "the of", "\x00", "_", "é́"]
)
def test_odd_questions_are_no_syntax_errors(index: Index, text: str):
    index.search(text, mode="bm25")
    index.search(text)


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_no_text_is_a_syntax_error(shared_index: Index, text: str):
    shared_index.search(text, mode="bm25")


@pytest.fixture(scope="module")
def shared_index(tmp_path_factory: pytest.TempPathFactory):
    with Index(tmp_path_factory.mktemp("shared") / "index", words_embedder()) as index:
        index.add([Document("a.txt", "Some text.")])
        yield index


def test_very_long_questions_work(index: Index):
    assert index.search(" ".join(f"w{n}" for n in range(5000)) + " bridge", k=1)


def test_stop_words_alone_still_search(index: Index):
    assert index.search("which of the", mode="bm25")


def test_an_empty_index_finds_nothing(tmp_path):
    with Index(tmp_path / "i", words_embedder()) as index:
        assert index.search("anything") == []
        assert index.add([Document("blank.txt", " \n")]).chunks == 0
        assert index.num_documents == 1


def test_several_folders_and_python_objects_live_together(index: Index, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.txt").write_text("Basalt is a rock.")
    index.add([Document("note", "Granite is a rock too.")])
    index.add_folder(other)
    assert index.add_folder(other).deleted == 0
    assert index.sources() == [*SOURCES, "note", "other/a.txt"]


def test_a_second_folder_of_the_same_name_is_refused(index: Index, corpus, tmp_path):
    twin = tmp_path / "elsewhere" / "corpus"
    twin.mkdir(parents=True)
    with pytest.raises(RetrievalError, match=r"holds the documents of .* under the name 'corpus'"):
        index.add_folder(twin)
    corpus.rename(tmp_path / "gone")
    assert index.add_folder(twin).deleted == 5  # the folder moved and lost its files


def test_unreadable_files_are_noted_and_do_not_stop_the_rest(index: Index, corpus):
    (corpus / "paper.pdf").write_bytes(b"broken")
    notes: list = []
    report = index.add_folder(corpus, on_progress=notes.append)
    assert (report.unreadable, report.deleted) == (1, 0)
    assert "paper.pdf" in notes[0]["note"]
    with pytest.raises(DataError, match="is not a folder"):
        index.add_folder(corpus / "nowhere")


def _faiss_files(index: Index) -> list[Path]:
    return sorted(index.path.glob("vectors-*.faiss"))


def test_the_faiss_file_follows_the_database(index: Index):
    index.prepare()
    (first,) = _faiss_files(index)
    index.add([Document("new.txt", "zebra")])
    assert index.search("zebra", k=1, mode="dense")[0].doc == "new.txt"
    (second,) = _faiss_files(index)
    assert first != second


@pytest.mark.parametrize("damage", ["missing", "torn", "foreign"])
def test_a_damaged_faiss_file_is_built_again(index: Index, damage: str):
    expected = index.search("steel towers", mode="dense")
    (path,) = _faiss_files(index)
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-7] if damage == "torn" else b"something else")
    with Index.open(index.path, index.embedder) as again:
        assert again.search("steel towers", mode="dense") == expected
    assert _faiss_files(index) == [path]


def test_readers_see_what_a_writer_commits(index: Index):
    with Index.open(index.path, index.embedder) as reader:
        assert reader.search("zebra", mode="bm25") == []
        index.add([Document("new.txt", "zebra")])
        assert reader.search("zebra", k=1)[0].doc == "new.txt"


def test_another_embedder_is_refused_by_name(index: Index):
    other = words_embedder("other words")
    message = (
        rf"embedder hashed words \(.*not other words \({other.fingerprint[:12]}\).*--overwrite"
    )
    with pytest.raises(RetrievalError, match=message):
        Index.open(index.path, other)


def test_other_folders_are_refused(corpus, tmp_path):
    with pytest.raises(RetrievalError, match="corpus is not an index folder; choose another"):
        Index(corpus, words_embedder())
    with pytest.raises(
        RetrievalError, match="nowhere is not an index folder; make one with `llmlab"
    ):
        Index.open(tmp_path / "nowhere", words_embedder())
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "index.sqlite").write_bytes(b"this is not a database at all, no" * 100)
    with pytest.raises(RetrievalError, match=r"cannot use index .*not a database.*--overwrite"):
        Index.open(broken, words_embedder())


def test_a_newer_format_is_refused(index: Index):
    index.close()
    database = sqlite3.connect(index.path / "index.sqlite")
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(RetrievalError, match="has format 99, this llmlab reads 1"):
        Index.open(index.path, words_embedder())


def test_damage_is_found(index: Index):
    database = sqlite3.connect(index.path / "index.sqlite")
    database.execute("UPDATE documents SET text = 'x' || text WHERE source = 'corpus/bridge.txt'")
    database.commit()
    database.close()
    with pytest.raises(RetrievalError, match="chunks off their place"):
        index.verify()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"k": 0}, "k=0"), ({"mode": "densee"}, "mode='densee' is unknown; did you mean 'dense'")],
)
def test_bad_requests_name_the_value(index: Index, arguments, message):
    with pytest.raises(RetrievalError, match=message):
        index.search("bridge", **arguments)


def test_unknown_documents_have_a_hint(index: Index):
    with pytest.raises(RetrievalError, match=r"did you mean 'corpus/code\.py'"):
        index.document("corpus/cod.py")


def test_chunks_longer_than_the_embedder_reads_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="chunk_tokens=500 is more than the 254 tokens"):
        Index(tmp_path / "i", words_embedder(), chunk_tokens=500)
    assert not (tmp_path / "i").exists()


def test_minilm_is_the_default_and_is_found_again(minilm: Embedder, corpus, tmp_path):
    with Index(tmp_path / "i") as index:
        report = index.add_folder(corpus)
        assert report.embedded == report.chunks > 0
    with Index.open(tmp_path / "i") as index:
        assert index.embedder.fingerprint == minilm.fingerprint
        hits = index.search("insects that make sweet food", k=1, mode="dense")
        assert hits[0].doc == "corpus/guide/bees.md"
        assert index.add_folder(corpus).embedded == 0
