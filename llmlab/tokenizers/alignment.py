"""Where in the original text each character and each token comes from.

A normaliser tells what it did as segments: so many characters became this text. Alignments of
several normalisers compose. A character made of several, such as an accented letter composed of
two, comes from all of them, so that a token's slice of the original has everything the token
stands for; `tokenizers` gives the first (or last) of them only. Everything else is as there: a
token that holds part of a character covers the whole character, white space that belongs to a
token counts (`trim_offsets` false), and what was dropped belongs to no token. Not here: the
segments (normalizers.py), the lengths of tokens (the models).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

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


def token_offsets(
    alignment: Alignment,
    pieces: Sequence[tuple[int, int]] | NDArray[np.int64],
    counts: ArrayLike,
    lengths: ArrayLike,
    *,
    unit: Literal["bytes", "characters"],
) -> NDArray[np.int64]:
    """Return start and end of every token, in characters of the original text.

    Args:
        alignment: of the normalised text that was cut into P pieces and encoded.
        pieces: (P, 2) start and end of each piece in the normalised text, in characters.
        counts: (P,) number of tokens of each piece.
        lengths: (N,) what each token stands for, in `unit`; -1 for an unknown token, which takes
            what the others of its piece leave (several share it evenly, the last with the rest).
        unit: UTF-8 bytes for byte-level and byte-fallback vocabularies.

    Returns:
        (N, 2). Starts never fall, nor do ends.
    """
    spans = np.asarray(pieces, np.int64).reshape(-1, 2)  # (P, 2)
    edges = _byte_edges(alignment.text) if unit == "bytes" else None  # (n + 1,)
    if edges is not None:
        spans = edges[spans]
    owner = np.repeat(np.arange(len(spans)), np.asarray(counts, np.int64))  # (N,) piece of each
    sizes = _filled(np.asarray(lengths, np.int64), owner, spans[:, 1] - spans[:, 0])
    if not len(sizes):
        return np.zeros((0, 2), np.int64)
    done = np.concatenate([[0], np.cumsum(sizes)])
    earlier = done[np.searchsorted(owner, owner)]  # (N,) what the pieces before are worth
    starts = spans[owner, 0] + done[:-1] - earlier
    lasts = starts + np.maximum(sizes, 1) - 1
    if edges is not None:
        starts = np.searchsorted(edges, starts, side="right") - 1
        lasts = np.searchsorted(edges, lasts, side="right") - 1
    return np.stack([alignment.starts[starts], alignment.ends[lasts]], axis=1)  # (N, 2)


def _filled(
    sizes: NDArray[np.int64], owner: NDArray[np.int64], available: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return (N,) sizes in which unknown ones share what their piece has left."""
    unknown = np.flatnonzero(sizes < 0)
    if not len(unknown):
        return sizes
    left = available.copy()  # (P,)
    np.subtract.at(left, owner, np.maximum(sizes, 0))
    sharing = np.bincount(owner[unknown], minlength=len(available))  # (P,)
    filled = sizes.copy()
    filled[unknown] = left[owner[unknown]] // sharing[owner[unknown]]
    final = unknown[np.append(owner[unknown][1:] != owner[unknown][:-1], True)]
    filled[final] += left[owner[final]] % sharing[owner[final]]
    return filled


def _byte_edges(text: str) -> NDArray[np.int64]:
    """Return where each character starts in UTF-8, and the length of the whole: (n + 1,)."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    widths = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    return np.concatenate([[0], np.cumsum(widths)])
