"""The compiled scanner cuts what the expressions cut, and cuts texts where nobody notices."""

import sysconfig
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.tokenizers.compiled.char_classes import (
    LETTER,
    NEWLINE,
    NUM_CODE_POINTS,
    NUMBER,
    OTHER,
    SPACE,
    char_classes,
    classes_for,
)
from llmlab.tokenizers.compiled.jit import compiled
from llmlab.tokenizers.compiled.scanner import piece_end, safe_cut
from llmlab.tokenizers.scan_rules import BERT_RULES, METASPACE_RULES, WHITESPACE_RULES
from llmlab.tokenizers.splits import SPLITS, all_splits
from llmlab.tokenizers.unicode_tables import CHINESE, CLEANED_SPACES, PUNCTUATION
from tests.llmlab.tokenizers.samples import CORPUS, TRICKY, shakespeare

WAYS = {split.name: (split.pattern, split.rules) for split in all_splits()} | {
    "whitespace": (regex.compile(r"\s+|\S+"), WHITESPACE_RULES),
    "metaspace": (regex.compile(r"(?s:.)[^ ]*"), METASPACE_RULES),
    "bert": (
        regex.compile(
            f"[{CLEANED_SPACES}]+|[{PUNCTUATION}{CHINESE}]"
            f"|[^{CLEANED_SPACES}{PUNCTUATION}{CHINESE}]+"
        ),
        BERT_RULES,
    ),
}
PUBLISHED = (*SPLITS, "whitespace", "metaspace", "bert")

texts = st.text(max_size=40) | st.lists(st.sampled_from(TRICKY), max_size=16).map("".join)


@compiled
def _ends(data, bounds, classes, rules, ends):
    """Write where the pieces of each text end; return how many there are."""
    count = 0
    for text in range(bounds.size - 1):
        at = bounds[text]
        while at < bounds[text + 1]:
            at = piece_end(data, at, bounds[text + 1], classes, rules)
            ends[count] = at
            count += 1
    return count


def scanned_texts(several, rules):
    encoded = [text.encode() for text in several]
    raw = b"".join(encoded)
    bounds = np.cumsum([0, *map(len, encoded)])
    ends = np.zeros(len(raw), np.int64)
    count = _ends(np.frombuffer(raw, np.uint8), bounds, classes_for(rules), rules, ends)
    places = [0, *ends[:count].tolist()]
    return [raw[a:b].decode() for a, b in pairwise(places)]


def scanned(text, rules):
    return scanned_texts([text], rules)


def _code_points(step):
    """All characters, but only every so many of the blocks of one kind: ideographs, Hangul…"""
    blocks = [range(0x3400, 0xA000), range(0xAC00, 0xD7A4), range(0xE000, 0xF900)]
    blocks.append(range(0x20000, NUM_CODE_POINTS))
    several = {point for block in blocks for point in block}
    every = {point for point in range(0x20000) if not 0xD800 <= point < 0xE000} - several
    return sorted(every | {point for block in blocks for point in block[::step]})


@pytest.mark.parametrize("way", WAYS)
@settings(deadline=None)  # the first example may wait for the compiler
@given(text=texts)
def test_cuts_like_the_expression(way, text):
    pattern, rules = WAYS[way]
    assert scanned(text, rules) == pattern.findall(text)


@pytest.mark.slow
@pytest.mark.parametrize("way", PUBLISHED)
def test_every_character_alone_and_between_words(way):
    pattern, rules = WAYS[way]
    chars = [chr(point) for point in _code_points(step=97)]
    alone = [piece for char in chars for piece in pattern.findall(char)]
    assert scanned_texts(chars, rules) == alone
    between = "".join(f"a {char} B{char}b'{char}" for char in chars)
    assert scanned(between, rules) == pattern.findall(between)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_all_characters(way):
    pattern, rules = WAYS[way]
    chars = [chr(point) for point in _code_points(step=1)]
    alone = [piece for char in chars for piece in pattern.findall(char)]
    assert scanned_texts(chars, rules) == alone
    beside = "".join(f"{char}a {char} 1{char}B'{char}b" for char in chars)
    assert scanned(beside, rules) == pattern.findall(beside)


@pytest.mark.parametrize("way", WAYS)
def test_real_text(way):
    pattern, rules = WAYS[way]
    folder = Path(sysconfig.get_paths()["stdlib"])
    names = ("argparse.py", "unicodedata.py", "html/entities.py", "stringprep.py", "this.py")
    sources = [folder / name for name in names if (folder / name).exists()]
    for text in [*CORPUS, *(path.read_text(encoding="utf-8") for path in sources)]:
        assert scanned(text, rules) == pattern.findall(text)


@pytest.mark.parametrize("way", PUBLISHED)
def test_tiny_shakespeare(way):
    pattern, rules = WAYS[way]
    text = shakespeare()
    assert scanned(text, rules) == pattern.findall(text)


@pytest.mark.parametrize("way", WAYS)
@settings(deadline=None, max_examples=50)
@given(text=texts, data=st.data())
def test_a_safe_cut_changes_no_piece(way, text, data):
    pattern, rules = WAYS[way]
    raw = text.encode()
    seen = data.draw(st.integers(0, len(text)))  # what a stream has shown so far
    stop = len(text[:seen].encode())
    cut = safe_cut(np.frombuffer(raw, np.uint8), 0, stop, classes_for(rules), rules)
    left, right = raw[:cut].decode(), raw[cut:].decode()
    assert 0 <= cut < max(stop, 1)
    assert pattern.findall(left) + pattern.findall(right) == pattern.findall(text)


@pytest.mark.parametrize("way", WAYS)
def test_ordinary_text_can_be_cut_nearly_anywhere(way):
    rules = WAYS[way][1]
    for text in ("The cat sat on the mat. " * 9, "def add(a, b):\n    return a\n\n\n" * 9):
        raw = np.frombuffer(text.encode(), np.uint8)
        for stop in range(40, raw.size):
            assert safe_cut(raw, 0, stop, classes_for(rules), rules) > stop - 40


@pytest.mark.parametrize("way", ["gpt2", "cl100k", "qwen2", "o200k", "smollm"])
def test_text_without_spaces_can_be_cut(way):
    raw = np.frombuffer("猫坐在垫子上，狗坐在木头上。".encode() * 9, np.uint8)
    assert safe_cut(raw, 0, raw.size, classes_for(WAYS[way][1]), WAYS[way][1]) > raw.size - 40


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("text", ["", "a", "é", "x" * 99, "か" * 99])
def test_one_word_cannot_be_cut(way, text):
    raw = np.frombuffer(text.encode(), np.uint8)
    assert safe_cut(raw, 0, raw.size, classes_for(WAYS[way][1]), WAYS[way][1]) == 0


def test_classes_divide_all_characters():
    classes = char_classes()
    kinds = classes & (LETTER | NUMBER | SPACE | OTHER)
    assert set(kinds.tolist()) == {LETTER, NUMBER, SPACE, OTHER}
    assert np.flatnonzero(classes & NEWLINE).tolist() == [0x0A, 0x0D]
    for char in "aZéſ中ʰǅ\u0301 1٣Ⅷ½ \t\u00a0\u3000\x1c\x85!🙂\U0001d7d8\U00010400":
        for bit, expression in ((LETTER, r"\p{L}"), (NUMBER, r"\p{N}"), (SPACE, r"\s")):
            assert bool(classes[ord(char)] & bit) == bool(regex.match(expression, char))


def test_the_table_is_made_once_and_read_only():
    assert char_classes() is char_classes()
    with pytest.raises(ValueError, match="read-only"):
        char_classes()[0] = 1
