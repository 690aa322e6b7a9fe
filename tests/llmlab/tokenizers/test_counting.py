"""Counted pieces: the same as the expressions find, on any number of threads, within memory."""

import logging
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.errors import ConfigError, TokenizerError
from llmlab.tokenizers.compiled.batches import BATCH_BYTES, batches
from llmlab.tokenizers.compiled.counting import MAX_PIECE_BYTES, PieceCounts, count_pieces
from llmlab.tokenizers.compiled.piece_table import PieceTable, add_piece, grown, new_table
from llmlab.tokenizers.scan_rules import BERT_RULES, METASPACE_RULES, WHITESPACE_RULES
from llmlab.tokenizers.splits import SPLITS, find_split
from tests.llmlab.tokenizers.samples import CORPUS, TORTURE, TRICKY, shakespeare

QWEN2 = find_split("qwen2").rules


def by_expression(texts, split):
    """Count with the expression; a counter keeps the order of first sight."""
    counts = Counter()
    for text in texts:
        counts.update(split.pattern.findall(text))
    return [(piece.encode(), count) for piece, count in counts.items()]


def random_words(seed, num_bytes):
    """Text of seven-letter words of which hardly one comes twice."""
    letters = np.random.default_rng(seed).integers(97, 123, num_bytes, np.uint8)
    letters[::8] = 0x20
    return letters.tobytes().decode()


def zipfian(seed, num_words):
    """Text of some words that come often and many that do not."""
    ranks = np.random.default_rng(seed).zipf(1.3, num_words)
    numbers = "".join(f" {rank % 10**9}" for rank in ranks.tolist())
    return numbers.translate(str.maketrans("0123456789", "abcdefghij"))


@pytest.mark.parametrize("name", SPLITS)
def test_counts_what_the_expression_finds(name):
    split = find_split(name)
    texts = [text for text in (*CORPUS, *TORTURE) if len(text) < MAX_PIECE_BYTES]
    assert list(count_pieces(texts, split.rules).items()) == by_expression(texts, split)


@settings(deadline=None, max_examples=50)
@given(texts=st.lists(st.text() | st.lists(st.sampled_from(TRICKY)).map("".join), max_size=5))
def test_any_texts(texts):
    split = find_split("o200k")
    counts = count_pieces(texts, split.rules, num_threads=1)
    assert list(counts.items()) == by_expression(texts, split)
    assert len(counts) == len(list(counts.items()))


@pytest.mark.parametrize("name", ["gpt2", "qwen2"])
def test_a_long_text_is_counted_in_parts_as_a_whole(name):
    split = find_split(name)
    text = shakespeare() * 5  # several batches
    assert len(list(batches([text], split.rules))) > 2
    assert list(count_pieces([text], split.rules).items()) == by_expression([text], split)


def test_parts_of_a_text_make_the_text():
    text = "猫，" * 10 + "words and  spaces\n" * 400_000 + "é" * BATCH_BYTES + " end"
    parts = list(batches(["before", text, "after"], QWEN2))
    whole = b"".join(part.data.tobytes() for part in parts)
    assert whole == ("before" + text + "after").encode()
    assert sum(part.num_documents for part in parts) == 3
    assert all(part.bounds[0] == 0 and part.bounds[-1] == part.data.size for part in parts)


def test_no_text_at_all():
    assert len(count_pieces([], QWEN2)) == 0
    assert list(count_pieces(["", ""], QWEN2).items()) == []
    assert len(PieceCounts.from_mapping({})) == 0


@pytest.mark.parametrize("max_bytes", [2**30, 2**22])
def test_the_result_does_not_depend_on_the_threads(max_bytes):
    texts = [zipfian(seed, 30_000 * (1 + seed % 7)) for seed in range(12)]
    one, two, five = (
        count_pieces(texts, QWEN2, num_threads=threads, max_bytes=max_bytes)
        for threads in (1, 2, 5)
    )
    assert (one.max_missing > 0) == (max_bytes < 2**30)
    for other in (two, five):
        assert other.max_missing == one.max_missing
        for name in ("data", "starts", "counts"):
            assert np.array_equal(getattr(one, name), getattr(other, name))


def test_within_little_memory_the_frequent_pieces_stay(caplog):
    texts = [zipfian(seed, 100_000) for seed in range(12)]
    exact = dict(count_pieces(texts, QWEN2).items())
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        counts = count_pieces(texts, QWEN2, max_bytes=2**22)
    (record,) = caplog.records
    assert f"max_bytes={2**22}" in record.message
    assert f"up to {counts.max_missing} short" in record.message
    found = dict(counts.items())
    assert 96 * len(counts) + 3 * counts.data.size <= 2**22
    for piece, count in exact.items():
        assert count - counts.max_missing <= found.get(piece, 0) <= count


def test_text_that_never_repeats_itself_is_dropped():
    texts = [random_words(seed, BATCH_BYTES) + " the the the" for seed in range(4)]
    counts = count_pieces(texts, QWEN2, max_bytes=2**20)
    assert dict(counts.items())[b" the"] >= 3
    assert len(counts) < 2**20 // 96


def test_long_pieces_are_counted_in_parts():
    counts = count_pieces(["x" * 5000, "y" * 1024, "猫" * 1000], QWEN2)
    cats = ("猫" * 1000).encode()
    assert dict(counts.items()) == {
        b"x" * 1024: 4,
        b"x" * 904: 1,
        b"y" * 1024: 1,
        cats[:1024]: 1,
        cats[1024:2048]: 1,
        cats[2048:]: 1,
    }
    mapping = {"x" * 5000: 1, "y" * 1024: 1, "猫" * 1000: 1}
    assert list(PieceCounts.from_mapping(mapping).items()) == list(counts.items())


@pytest.mark.parametrize("rules", [WHITESPACE_RULES, METASPACE_RULES, BERT_RULES])
@pytest.mark.parametrize("char", ["é", "か", "🙂"])
def test_parts_of_long_pieces_are_whole_characters_where_models_read_characters(rules, char):
    pieces = dict(count_pieces([char * 20_000], rules).items())
    assert sum(len(piece.decode()) * count for piece, count in pieces.items()) == 20_000
    assert max(map(len, pieces)) > MAX_PIECE_BYTES - 4


def test_white_space_and_metaspace_pieces():
    text = "one two  two\n one"
    assert dict(count_pieces([text], WHITESPACE_RULES).items()) == {
        b"one": 2,
        b" ": 1,
        b"two": 2,
        b"  ": 1,
        b"\n ": 1,
    }
    assert dict(count_pieces([text], METASPACE_RULES).items()) == {
        b"one": 1,
        b" two": 1,
        b" ": 1,
        b" two\n": 1,
        b" one": 1,
    }


@pytest.mark.parametrize("count", [2**31 + 5, 2**32 + 1, 2**62])
def test_counts_have_64_bits(count):
    counts = PieceCounts.from_mapping({"ab": count, "c": 1})
    assert list(counts.items()) == [(b"ab", count), (b"c", 1)]
    assert counts.counts.dtype == np.int64


def test_arrays_are_read_only():
    counts = PieceCounts.from_mapping({"ab": 2})
    for array in (counts.data, counts.starts, counts.counts):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_progress_tells_documents_bytes_and_pieces():
    rows = []
    texts = [f"text {number} " + "x y " * 100_000 for number in range(12)]
    counts = count_pieces(texts, QWEN2, on_progress=rows.append)
    assert len(rows) > 2
    assert rows[-1] == {
        "documents": 12,
        "bytes": sum(map(len, texts)),
        "pieces": len(counts),
    }
    assert [row["documents"] for row in rows] == sorted(row["documents"] for row in rows)


def test_errors():
    with pytest.raises(TokenizerError, match=r"lone surrogate U\+D800.*errors='replace'"):
        count_pieces(["fine", "a\ud800"], QWEN2)
    with pytest.raises(TokenizerError, match="lone surrogate"):
        PieceCounts.from_mapping({"\udfff": 1})
    with pytest.raises(ConfigError, match="max_bytes=0 is not positive"):
        count_pieces([], QWEN2, max_bytes=0)


@settings(deadline=None, max_examples=50)
@given(pieces=st.lists(st.binary(max_size=12) | st.binary(max_size=1)))
def test_the_table_is_a_counter(pieces):
    table: PieceTable = new_table(1, 1)
    for piece in pieces:
        table = grown(table, 1, len(piece))
        add_piece(table, np.frombuffer(piece, np.uint8), 0, len(piece), 3)
    found = {
        table.arena[table.starts[piece] : table.starts[piece + 1]].tobytes(): int(count)
        for piece, count in enumerate(table.counts[: table.num_pieces])
    }
    assert found == {piece: 3 * count for piece, count in Counter(pieces).items()}


_MEASURE = """
import resource
from llmlab.tokenizers.compiled.counting import count_pieces
from llmlab.tokenizers.splits import find_split
from tests.llmlab.tokenizers.test_counting import random_words

rules = find_split("qwen2").rules
texts = [random_words(seed, 1_000_000) for seed in range(20)]
count_pieces(texts[:1], rules)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
stream = (text[start:] for start in range(NUM) for text in texts)
counts = count_pieces(stream, rules, max_bytes=MAX_BYTES, num_threads=2)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(after - before, counts.max_missing)
"""


@pytest.mark.slow
def test_memory_is_bounded():
    # 140 MB of words, 2.5 million of them different every time round: 17 million in all.
    max_bytes, batch_bytes = 2**26, 60 * 10**6
    script = _MEASURE.replace("NUM", "7").replace("MAX_BYTES", str(max_bytes))
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=110)
    grown_kib, max_missing = map(int, done.stdout.split())
    assert max_missing > 0
    assert grown_kib * 1024 < max_bytes + 4 * batch_bytes
