"""Words that become one id whatever the merges say: bytes to id, open addressing.

A word's bytes lie in an arena; a row of the table is (start, end, id), and start is -1 in an empty
row. Equality is checked on the bytes; the hash only says where to look.
"""

from typing import Any

import numpy as np

from llmlab.tokenizers.compiled.jit import compiled, compiled_inner

_START = np.uint64(0xCBF29CE484222325)
_MIX = np.uint64(0x9E3779B97F4A7C15)
_TURN = np.uint64(29)


def word_table(num_words: int) -> Any:
    """Return an empty table for so many words, (rows, 3) int64; at most half gets filled."""
    return np.full((1 << (2 * num_words).bit_length(), 3), -1)


@compiled
def fill_words(words: Any, spellings: Any, bounds: Any, ids: Any) -> None:
    """Enter words: word i is `spellings[bounds[i] : bounds[i + 1]]` and becomes `ids[i]`."""
    for word in range(ids.shape[0]):
        start, end = bounds[word], bounds[word + 1]
        row = _row_of(words, spellings, spellings, start, end)
        words[row, 0], words[row, 1], words[row, 2] = start, end, ids[word]


@compiled_inner
def find_word(words: Any, spellings: Any, data: Any, start: int, end: int) -> Any:
    """Return the id of `data[start:end]`, or -1 when it is no word."""
    if words.shape[0] == 1:
        return np.int64(-1)
    return words[_row_of(words, spellings, data, start, end), 2]


@compiled_inner
def _row_of(words: Any, spellings: Any, data: Any, start: int, end: int) -> Any:
    """Return the row of a word, or the empty row where it belongs."""
    last = np.uint64(words.shape[0] - 1)
    row = _hash(data, start, end) & last
    while words[row, 0] >= 0 and not _equal(
        spellings, words[row, 0], words[row, 1], data, start, end
    ):
        row = (row + np.uint64(1)) & last
    return row


@compiled_inner
def _hash(data: Any, start: int, end: int) -> np.uint64:
    mixed = _START
    for at in range(start, end):
        mixed = (mixed ^ np.uint64(data[at])) * _MIX
        mixed ^= mixed >> _TURN
    return mixed


@compiled_inner
def _equal(spellings: Any, word_start: int, word_end: int, data: Any, start: int, end: int) -> bool:
    if word_end - word_start != end - start:
        return False
    for offset in range(end - start):
        if spellings[word_start + offset] != data[start + offset]:
            return False
    return True
