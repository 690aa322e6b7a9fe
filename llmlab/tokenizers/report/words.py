"""Words, and how many tokens each one takes.

A word is an unbroken run of letters and their marks, apostrophes inside it included, so `don't` is
one word, `snake_case` two and `3.14` none. Scripts that put no spaces between words (Han, Kana,
Thai, Lao, Khmer, Burmese) have no words here, since only a dictionary could find them.

Tokens per word is what the literature calls fertility (Rust et al., arXiv:2012.15613): the tokens
that touch a word, averaged over the words. A token that also covers the space before a word or a
comma after it counts as the word's.
"""

from typing import Any

import numpy as np
import regex
from numpy.typing import NDArray

_LETTER = r"[[\p{L}\p{M}]--[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]]"
_WORD = regex.compile(rf"{_LETTER}+(?:['’]{_LETTER}+)*", regex.V1)

Spans = NDArray[np.int64]
"""(N, 2): where each one starts and ends."""


def word_spans(text: str) -> Spans:
    """Return where the words of a text lie, in characters; (W, 2)."""
    spans = [match.span() for match in _WORD.finditer(text)]
    return np.array(spans, dtype=np.int64).reshape(-1, 2)


def in_bytes(spans: Spans, text: str, data: bytes) -> Spans:
    """Turn spans in characters of a text into spans in bytes of its UTF-8."""
    if len(data) == len(text):
        return spans
    units = np.frombuffer(data, np.uint8)
    starts = np.flatnonzero((units & 0xC0) != 0x80)  # where each character starts
    return np.append(starts, len(data))[spans]


def tokens_touching(words: Spans, starts: NDArray[Any], ends: NDArray[Any]) -> NDArray[np.int64]:
    """Count the tokens that share at least one character with each word.

    Args:
        words: (W, 2).
        starts: (T,) where each token starts, in the unit of the words, never falling.
        ends: (T,) where it ends, never falling.

    Returns:
        (W,) counts.
    """
    first = np.searchsorted(ends, words[:, 0], side="right")
    last = np.searchsorted(starts, words[:, 1], side="left")
    return np.maximum(last - first, 0)
