"""Passages of the validation split that stand in the training split."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.data import PackConfig, Shards, contamination, pack
from llmlab.data.contamination import Overlap, find_overlap, ngram_tokens
from llmlab.data.packing import is_held_out

EOS = 0


def split(documents: list[list[int]]) -> tuple:
    ids = [token for document in documents for token in [*document, EOS]]
    starts = np.cumsum([0, *(len(document) + 1 for document in documents)])[:-1]
    return np.array(ids, np.uint16), starts


def plainly(train: list[list[int]], val: list[list[int]], n: int) -> Overlap:
    """What `find_overlap` says, looked up in a set."""
    known = {tuple(d[at : at + n]) for d in train for at in range(len(d) - n + 1)}
    found = [
        [tuple(d[at : at + n]) in known for at in range(0, len(d) - n + 1, n)]
        for d in val
        if len(d) >= n
    ]
    return Overlap(
        ngram_tokens=n,
        blocks=sum(map(len, found)),
        blocks_found=sum(map(sum, found)),
        documents=len(found),
        documents_touched=sum(map(any, found)),
        documents_mostly_found=sum(2 * sum(blocks) >= len(blocks) for blocks in found),
    )


DOCUMENTS = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=40), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(train=DOCUMENTS, val=DOCUMENTS, n=st.integers(1, 8), chunk=st.integers(1, 50))
def test_it_finds_what_a_plain_search_finds(train, val, n: int, chunk: int):
    original, contamination._CHUNK_TOKENS = contamination._CHUNK_TOKENS, chunk
    try:
        (train_ids, _), (val_ids, starts) = split(train), split(val)
        assert find_overlap(train_ids, val_ids, starts, ngram=n) == plainly(train, val, n)
    finally:
        contamination._CHUNK_TOKENS = original


def test_random_ids_of_a_large_vocabulary_share_nothing():
    rng = np.random.default_rng(0)
    train, val = rng.integers(1, 2**32, 2**20, np.uint32), rng.integers(1, 2**32, 2**16, np.uint32)
    found = find_overlap(train, val, np.array([0]), ngram=13)
    assert (found.blocks, found.blocks_found) == (2**16 // 13, 0)


def test_a_large_split_is_sampled(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(contamination, "_MAX_BLOCKS", 100)
    val, starts = split([[n % 7 + 1] * 13 for n in range(1000)])
    found = find_overlap(val, val, starts, ngram=13)
    assert found.blocks == found.blocks_found == 100


def test_short_tokens_take_longer_ngrams():
    assert ngram_tokens(4.5) == 13
    assert ngram_tokens(1.0) == 50
    assert ngram_tokens(3.0) == 17


def write(folder: Path, texts: list[str]) -> str:
    for number, text in enumerate(texts):
        (folder / f"{number:03d}.txt").write_text(text)
    return str(folder)


def words(seed: int) -> str:
    numbers = np.random.default_rng(seed).integers(0, 10**6, 60)
    return " ".join(map(str, numbers.tolist()))


def test_pack_reports_copied_passages(tokenizer_folder: Path, tmp_path: Path):
    texts = [words(seed) for seed in range(80)]
    held_out = [text for text in texts if is_held_out(text.encode(), 0.2)]
    assert len(held_out) > 5
    copies = [f"Quoted: {text}\nend" for text in held_out[:3]]  # other hashes, the same passage
    assert not any(is_held_out(copy.encode(), 0.2) for copy in copies)
    (tmp_path / "texts").mkdir()
    rows: list = []
    config = PackConfig(
        sources=(write(tmp_path / "texts", [*texts, *copies]),),
        tokenizer=tokenizer_folder,
        out=tmp_path / "out",
        val_fraction=0.2,
    )
    overlap = pack(config, rows.append).overlap
    assert overlap.documents == len(held_out)
    assert overlap.documents_mostly_found == 3
    assert Shards(tmp_path / "out").meta["overlap"]["blocks_found"] == overlap.blocks_found
    (note,) = [row["note"] for row in rows if "note" in row]
    assert note.startswith("warning: ")
    assert f"3 of {len(held_out)} held-out documents share some, 3 half or more" in note


def test_copies_of_a_document_are_on_one_side(tokenizer_folder: Path, tmp_path: Path):
    (tmp_path / "texts").mkdir()
    write(tmp_path / "texts", [words(seed % 40) for seed in range(80)])  # each text twice
    config = PackConfig(
        sources=(str(tmp_path / "texts"),),
        tokenizer=tokenizer_folder,
        out=tmp_path / "out",
        val_fraction=0.2,
    )
    overlap = pack(config).overlap
    assert overlap.documents > 3
    assert overlap.blocks_found == 0


def test_copies_of_the_document_whose_tail_is_held_out_lose_it(
    tokenizer_folder: Path, tmp_path: Path
):
    (tmp_path / "texts").mkdir()
    long = "\n".join(words(seed) for seed in range(40))
    write(tmp_path / "texts", [long, "short", long])
    config = PackConfig(
        sources=(str(tmp_path / "texts"),),
        tokenizer=tokenizer_folder,
        out=tmp_path / "out",
        val_fraction=0.1,
    )
    overlap = pack(config).overlap
    assert Shards(tmp_path / "out").meta["held_out"].startswith("tail")
    assert overlap.blocks > 5
    assert overlap.blocks_found == 0
