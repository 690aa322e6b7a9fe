"""The characters of counted words, and the words laid out without those that are too rare.

A space and U+2581, which stands for one, are the same character here: U+0020. Bytes that are no
UTF-8 (a word cut within a character) count as nothing and part their word.
"""

from typing import Any

import numpy as np

from llmlab.tokenizers.compiled.jit import compiled, compiled_inner

NUM_CODE_POINTS = 0x110000

_SPACE, _SPACE_MARK = 0x20, 0x2581
_LEAST = (0, 0, 0x80, 0x800, 0x10000)  # code point that needs so many bytes


@compiled
def count_characters(data: Any, starts: Any, counts: Any) -> Any:
    """Return how often each character is there, (NUM_CODE_POINTS,) int64.

    Args:
        data: (bytes,) uint8: words, one after another.
        starts: (num_words + 1,) int64: where each starts.
        counts: (num_words,) int64: how often each was seen.
    """
    totals = np.zeros(NUM_CODE_POINTS, np.int64)
    for word in range(counts.size):
        at, end = starts[word], starts[word + 1]
        while at < end:
            point, width = _character(data, at, end)
            if point > 0:  # a zero stands between words
                totals[point] += counts[word]
            at += width
    return totals


@compiled
def lay_out(data: Any, starts: Any, kept: Any) -> Any:
    """Copy words with a zero behind each, and zeros for characters that are not kept.

    Args:
        data: (bytes,) uint8: words, one after another.
        starts: (num_words + 1,) int64: where each starts.
        kept: (NUM_CODE_POINTS,) bool.

    Returns:
        text: (bytes,) uint8.
        owners: (bytes,) int32, the word of each byte.
    """
    num_words = starts.size - 1
    text = np.zeros(data.size + num_words + 1, np.uint8)
    owners = np.zeros(text.size, np.int32)
    size = 0
    for word in range(num_words):
        at, end = starts[word], starts[word + 1]
        begin = size
        while at < end:
            point, width = _character(data, at, end)
            if point == _SPACE and kept[point]:
                text[size] = _SPACE
                size += 1
            elif point >= 0 and kept[point]:
                for place in range(at, at + width):
                    text[size] = data[place]
                    size += 1
            elif size > begin and text[size - 1] != 0:
                size += 1
            at += width
        size += 1
        for place in range(begin, size):
            owners[place] = word
    return text[: size + 1], owners[: size + 1]


@compiled_inner
def _character(data: Any, at: int, end: int) -> Any:
    """Return a character and its bytes; -1 and one byte when there is no UTF-8 here."""
    lead = np.int64(data[at])
    if lead < 0x80:
        return lead, 1
    width = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    if lead < 0xC2 or lead > 0xF4 or at + width > end:
        return -1, 1
    point = lead & (0x7F >> width)
    for place in range(at + 1, at + width):
        if data[place] & 0xC0 != 0x80:
            return -1, 1
        point = point << 6 | np.int64(data[place] & 0x3F)
    if point == _SPACE_MARK:
        return _SPACE, width
    return (point, width) if point < NUM_CODE_POINTS and point >= _LEAST[width] else (-1, 1)
