from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.errors import ConfigError
from llmlab.rag import Document, Embedder, load_file
from llmlab.rag.chunk import character_starts, chunk_document
from llmlab.rag.documents import Chunk
from llmlab.rag.sentences import line_spans, sentence_spans
from tests.rag.words_embedder import words_embedder

word_starts = words_embedder().token_starts

_PIECES = st.sampled_from(
    [
        "# Head\n",
        "Word. ",
        "Dr. Who said: ",
        "\n\n",
        "\n",
        "- item\n",
        "```\n",
        "x" * 30,
        "é",
        "🙂\u200d↔️",
        "漢字。",
        "\u00a0",
        "\u2028",
        "\r\n",
        "def f():\n",
        "e.g. this ",
        "3.14 ",
    ]
)
_TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=300),
    st.lists(_PIECES, max_size=60).map("".join),
)
_SIZES = st.tuples(st.integers(1, 40), st.integers(0, 19)).filter(lambda s: 2 * s[1] < s[0])


@settings(max_examples=150, deadline=None)
@given(
    text=_TEXTS,
    sizes=_SIZES,
    suffix=st.sampled_from([".txt", ".md", ".py"]),
    starts=st.sampled_from([character_starts, word_starts]),
)
def test_chunks_are_exact_complete_ordered_and_small(text, sizes, suffix, starts):
    size, overlap = sizes
    document = Document(f"d{suffix}", text)
    chunks = chunk_document(document, size=size, overlap=overlap, token_starts=starts)
    covered = np.zeros(len(text), dtype=bool)
    offsets = starts(text)
    for chunk in chunks:
        assert text[chunk.start : chunk.end] == chunk.text == chunk.text.strip() != ""
        inside = (offsets >= chunk.start) & (offsets < chunk.end)
        assert inside.sum() <= size
        covered[chunk.start : chunk.end] = True
    assert all(covered[at] or char.isspace() for at, char in enumerate(text))
    for before, after in pairwise(chunks):
        assert before.start < after.start
        assert before.end < after.end
        assert ((offsets >= after.start) & (offsets < before.end)).sum() <= overlap


@settings(max_examples=100, deadline=None)
@given(text=_TEXTS, spans=st.sampled_from([sentence_spans, line_spans]))
def test_sentences_hold_everything_but_blanks(text, spans):
    found = spans(text)
    assert all(start < end for start, end in found)
    assert all(a[1] <= b[0] for a, b in pairwise(found))
    kept = "".join(text[start:end] for start, end in found)
    assert "".join(kept.split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        (
            "Dr. J. Smith came, e.g. on foot. He left.",
            ["Dr. J. Smith came, e.g. on foot.", "He left."],
        ),
        ("Pi is 3.14 or so. Yes.", ["Pi is 3.14 or so.", "Yes."]),
        (
            "a wing in a slipstream .\n  an experiment",
            ["a wing in a slipstream .", "an experiment"],
        ),
        ('He said "go." Then left.', ['He said "go."', "Then left."]),
        ("漢字。仮名。", ["漢字。", "仮名。"]),
        (
            "# Head\nBody text\nflows on.\n- a\n- b",
            ["# Head", "Body text\nflows on.", "- a", "- b"],
        ),
        ("1. First item\n2. Second", ["1. First item", "2. Second"]),
        ("no end", ["no end"]),
        ("", []),
    ],
)
def test_sentence_boundaries(text, sentences):
    assert [text[start:end] for start, end in sentence_spans(text)] == sentences


def test_long_runs_of_dots_take_linear_time():
    text = "." * 200_000 + "x"
    assert sentence_spans(text) == [(0, len(text))]


def _cut(path: Path, size: int, overlap: int = 0) -> list[Chunk]:
    return chunk_document(load_file(path), size=size, overlap=overlap, token_starts=word_starts)


def test_markdown_sections_open_chunks_and_code_comments_do_not(corpus):
    texts = [chunk.text for chunk in _cut(corpus / "guide/bees.md", 40)]
    assert [text.split("\n")[0] for text in texts] == ["# Bees", "## Dance", "## Winter"]
    assert "# not a heading" in texts[1]


def test_python_definitions_open_chunks(corpus):
    texts = [chunk.text for chunk in _cut(corpus / "code.py", 24)]
    assert texts[-1].startswith("@staticmethod\ndef halve")


def test_overlap_repeats_whole_sentences():
    text = " ".join(f"Sentence number {n} is here." for n in range(12))
    chunks = chunk_document(Document("a.txt", text), size=20, overlap=7, token_starts=word_starts)
    for before, after in pairwise(chunks):
        shared = text[after.start : before.end]
        assert shared.startswith("Sentence number")
        assert shared.endswith("here.")


@pytest.mark.parametrize(("size", "overlap"), [(10, 5), (10, -1), (0, 0)])
def test_sizes_that_do_not_fit_name_values_and_fix(size, overlap):
    with pytest.raises(
        ConfigError, match=f"chunk_tokens={size} with overlap_tokens={overlap}.*try"
    ):
        chunk_document(Document("a", "b"), size=size, overlap=overlap, token_starts=word_starts)


def test_default_chunks_fit_the_window_of_minilm(minilm: Embedder, corpus):
    long = "Unbelievable antidisestablishmentarianism, 漢字 and 🙂, " * 200 + "q" * 3000
    chunks = chunk_document(
        Document("long.txt", long), size=240, overlap=32, token_starts=minilm.token_starts
    )
    longest = max(len(minilm.token_starts(chunk.text)) for chunk in chunks)
    assert longest <= minilm.max_tokens == 254


def test_what_does_not_fit_one_chunk_is_shared_evenly():
    text = " ".join(f"Sentence number {n} is here." for n in range(12))  # 6 tokens each
    chunks = chunk_document(Document("a.txt", text), size=60, overlap=0, token_starts=word_starts)
    assert [len(word_starts(chunk.text)) for chunk in chunks] == [36, 36]
