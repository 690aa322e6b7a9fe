"""Documents placed whole into windows.

A stream of windows cuts nearly every document somewhere; here only a document longer than a window
is cut: into whole windows and a rest. Rests and shorter documents are placed, longest first, each
into the fullest window that still has room (best-fit decreasing; Ding et al., "Fewer Truncations
Improve Language Modeling", arXiv 2404.10830). What stays free is padding, which is not scored.

The plan is made for 16,384 pieces of neighbouring documents at a time, so what a document lies
beside depends on its neighbourhood only. It takes about 12 bytes a document of memory and two
seconds a million documents, once. Not here: the order of the windows (windows.py).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BUFFER_PIECES = 2**14


@dataclass(frozen=True)
class PackingPlan:
    """Which tokens stand in which window. A piece is a range of tokens of one document."""

    starts: NDArray[np.int64]
    """First token of each piece, window after window; (pieces,)."""

    lens: NDArray[np.int32]
    """Tokens of each piece; (pieces,)."""

    windows: NDArray[np.int64]
    """Where the pieces of each window begin in the two arrays above, and their number at the end;
    (num_windows + 1,)."""

    num_documents: int
    """Documents placed."""

    num_cut: int
    """Documents longer than a window, which are cut."""

    padding: float
    """Share of the positions that hold nothing."""

    @property
    def num_windows(self) -> int:
        """Windows an epoch."""
        return len(self.windows) - 1

    def pieces(self, window: int) -> list[tuple[int, int]]:
        """Return (first token, number of tokens) of each piece of a window."""
        at = slice(int(self.windows[window]), int(self.windows[window + 1]))
        return list(zip(self.starts[at].tolist(), self.lens[at].tolist(), strict=True))


def plan_best_fit(doc_starts: NDArray[np.int64], num_tokens: int, context_len: int) -> PackingPlan:
    """Place every token of a split into exactly one window.

    Args:
        doc_starts: first token of each document, (documents,).
        num_tokens: of the split.
        context_len: positions in a window, T.
    """
    doc_lens = np.diff(doc_starts, append=num_tokens)
    starts, lens = _cut(doc_starts, doc_lens, context_len)  # (pieces,)
    window_of = np.empty(len(starts), np.int64)
    num_windows = 0
    for at in range(0, len(lens), _BUFFER_PIECES):
        buffer = slice(at, at + _BUFFER_PIECES)
        placed, used = _place(lens[buffer], context_len)
        window_of[buffer] = placed + num_windows
        num_windows += used
    order = np.argsort(window_of, kind="stable")
    return PackingPlan(
        starts=starts[order],
        lens=lens[order],
        windows=np.searchsorted(window_of[order], np.arange(num_windows + 1)),
        num_documents=len(doc_starts),
        num_cut=int((doc_lens > context_len).sum()),
        padding=1 - num_tokens / (num_windows * context_len) if num_windows else 0.0,
    )


def _cut(
    doc_starts: NDArray[np.int64], doc_lens: NDArray[np.int64], context_len: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Cut documents into pieces of at most a window, in the order of the text."""
    counts = -(-doc_lens // context_len)  # (documents,)
    first = np.cumsum(counts) - counts
    number = np.arange(counts.sum()) - np.repeat(first, counts)  # of the piece in its document
    starts = np.repeat(doc_starts, counts) + number * context_len
    lens = np.minimum(np.repeat(doc_lens, counts) - number * context_len, context_len)
    return starts, lens.astype(np.int32)


def _place(lens: NDArray[np.int32], context_len: int) -> tuple[NDArray[np.int64], int]:
    """Return the window of each piece, and how many windows there are.

    Windows are kept by the room they have left; bit r of `rooms` says that some window has room r,
    so the tightest fit for a piece of n tokens is the lowest bit from n on.
    """
    window_of = np.empty(len(lens), np.int64)
    with_room: list[list[int]] = [[] for _ in range(context_len + 1)]
    rooms = num_windows = 0
    longest_first = np.argsort(-lens, kind="stable")
    for piece, length in zip(longest_first.tolist(), lens[longest_first].tolist(), strict=True):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            window = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, window = context_len, num_windows
            num_windows += 1
        window_of[piece] = window
        left = room - length
        if left:
            with_room[left].append(window)
            rooms |= 1 << left
    return window_of, num_windows
