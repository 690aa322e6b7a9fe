"""Where in the original text each character and each token comes from.

A normaliser tells what it did as segments: so many characters became this text. Alignments of
several normalisers compose. A character made of several, such as an accented letter composed of
two, comes from all of them, so that a token's slice of the original has everything the token
stands for; `tokenizers` gives the first (or last) of them only. Everything else is as there: a
token that holds part of a character covers the whole character, white space that belongs to a
token counts (`trim_offsets` false), and what was dropped belongs to no token. Not here: the
segments (normalizers.py), the lengths of tokens (the models).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Segment = tuple[int, str]
"""A number of characters, and the text that replaced them."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """A normalised text of n characters, and where each comes from in the original."""

    text: str
    """The normalised text."""

    starts: NDArray[np.int64]
    """(n,): first character in the original; never falls."""

    ends: NDArray[np.int64]
    """(n,): one past the last character in the original; never falls."""

    @classmethod
    def identity(cls, text: str) -> Self:
        """Return the alignment of a text with itself."""
        starts = np.arange(len(text), dtype=np.int64)
        return cls(text, starts, starts + 1)

    def then(self, segments: Iterable[Segment]) -> Self:
        """Return the alignment after one more normaliser.

        A segment of text that is as it was is aligned character by character; in any other, each
        character comes from the whole of what it replaced. Text that replaces nothing lies
        between its neighbours.

        Args:
            segments: what the normaliser made of `text`, side by side and in order.
        """
        pairs = list(segments)
        lengths = np.array([length for length, _ in pairs], np.int64)
        sizes = np.array([len(replacement) for _, replacement in pairs], np.int64)
        at = np.cumsum(lengths) - lengths  # where each segment starts
        unchanged = (lengths == sizes) & (lengths > 1)
        for i in np.flatnonzero(unchanged):
            unchanged[i] = self.text.startswith(pairs[i][1], at[i])
        first = np.repeat(at, sizes)  # for each new character, the first one it comes from
        last = first + np.repeat(lengths, sizes) - 1
        inside = np.arange(len(first)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        kept = np.repeat(unchanged, sizes)
        first[kept] += inside[kept]
        last[kept] = first[kept]
        end = self.ends[-1:] if len(self.text) else np.zeros(1, np.int64)
        starts = np.concatenate([self.starts, end])[first]
        ends = np.where(last >= first, np.concatenate([self.ends, end])[last], starts)
        text = "".join(replacement for _, replacement in pairs)
        return type(self)(text, starts, np.maximum.accumulate(ends))
