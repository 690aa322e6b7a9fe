"""How often each pre-token occurs in a stream of texts: all a trainer needs to see of them.

Batches of texts are counted by threads, each into a table of its own, and added to one table in
the order of the stream. So neither the result nor its order depends on the threads, and memory is
bounded: when the table outgrows its bound, the rarest pieces are dropped (lossy counting; Manku
and Motwani, VLDB 2002). Not here: what is learnt from the counts (trainers/).
"""

import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from llmlab.errors import ConfigError
from llmlab.tokenizers.alphabet import utf8
from llmlab.tokenizers.compiled.batches import Batch, batches
from llmlab.tokenizers.compiled.char_classes import classes_for
from llmlab.tokenizers.compiled.jit import compiled_inner
from llmlab.tokenizers.compiled.piece_table import (
    PieceTable,
    add_piece,
    grown,
    has_room,
    new_table,
    table_bytes,
)
from llmlab.tokenizers.compiled.scanner import piece_end
from llmlab.tokenizers.scan_rules import BERT, METASPACE, WHITESPACE, ScanRules
from llmlab.track import OnProgress, silent

_logger = logging.getLogger(__name__)

MAX_PIECE_BYTES = 1024
"""A longer pre-token is data, not a word; it is counted in parts of this length."""

MAX_BYTES = 2**30
"""Memory for the table of counts, unless a caller says otherwise."""


@dataclass(frozen=True)
class PieceCounts:
    """Different byte strings and how often each was seen, in the order of their first sight."""

    data: npt.NDArray[np.uint8]
    """(num_bytes,) the pieces, one after the other."""

    starts: npt.NDArray[np.int64]
    """(num_pieces + 1,) where each begins in `data`, and where the last one ends."""

    counts: npt.NDArray[np.int64]
    """(num_pieces,)"""

    max_missing: int = 0
    """What any count may lack because rare pieces were dropped; a piece that was seen more often
    than this is here. 0 when memory sufficed: all is exact."""

    @classmethod
    def from_mapping(cls, counts: Mapping[str, int]) -> Self:
        """Take counts that are known already, of any size below 2^63.

        Pieces longer than `MAX_PIECE_BYTES` become parts of that length, as when texts are
        counted.

        Raises:
            TokenizerError: a piece has a lone surrogate.
        """
        parts = [
            (raw[at : at + MAX_PIECE_BYTES], count)
            for raw, count in ((utf8(piece), count) for piece, count in counts.items())
            for at in range(0, len(raw), MAX_PIECE_BYTES)
        ]
        data = np.frombuffer(bytearray().join(part for part, _ in parts), np.uint8)
        starts = np.cumsum([0, *(len(part) for part, _ in parts)], dtype=np.int64)
        numbers = np.array([count for _, count in parts], np.int64)
        return cls._of_table(_with_added(new_table(), data, starts, numbers, floor=0), 0)

    @classmethod
    def _of_table(cls, table: PieceTable, max_missing: int) -> Self:
        return cls(
            data=_frozen(table.arena[: table.num_bytes]),
            starts=_frozen(table.starts[: table.num_pieces + 1]),
            counts=_frozen(table.counts[: table.num_pieces]),
            max_missing=max_missing,
        )

    def __len__(self) -> int:
        return self.counts.size

    def items(self) -> Iterator[tuple[bytes, int]]:
        """Yield each piece and its count."""
        raw = self.data.tobytes()
        bounds = pairwise(self.starts.tolist())
        for (start, end), count in zip(bounds, self.counts.tolist(), strict=True):
            yield raw[start:end], count


def count_pieces(
    texts: Iterable[str],
    rules: ScanRules,
    *,
    max_bytes: int = MAX_BYTES,
    num_threads: int | None = None,
    on_progress: OnProgress = silent,
) -> PieceCounts:
    """Count the pre-tokens of a stream of texts on all cores.

    Memory: the table of counts takes at most `max_bytes` (96 bytes a different piece and three
    for each of its bytes are reckoned, growth included: nine million words in 1 GiB). Beside it
    there are, for each thread and two more, a batch of 2 MiB and its own table: 2 MB on ordinary
    text, 60 MB on text that never repeats a word. The stream is held one text at a time.

    Args:
        texts: the stream; every text is cut by itself.
        rules: how (`Split.rules`, or those of scan_rules.py).
        max_bytes: when the table would outgrow this, the pieces seen least often are dropped
            until half of it is left, and a warning says so in the end.
        num_threads: how many texts are counted side by side; None takes a thread a core. The
            result is the same with any number.
        on_progress: called after every batch, with `documents`, `bytes` and different `pieces`.

    Raises:
        ConfigError: `max_bytes` is not positive.
        TokenizerError: a text has a lone surrogate.
    """
    if max_bytes < 1:
        raise ConfigError(f"max_bytes={max_bytes} is not positive; leave it at {MAX_BYTES}")
    counter = _Counter(max_bytes)
    num_documents = num_bytes = 0
    for batch, table in _counted(batches(texts, rules), rules, num_threads or _num_cores()):
        counter.add(table)
        num_documents += batch.num_documents
        num_bytes += batch.data.size
        on_progress(
            {"documents": num_documents, "bytes": num_bytes, "pieces": counter.table.num_pieces}
        )
    return counter.finish()


class _Counter:
    """The counts so far, within a bound on memory."""

    def __init__(self, max_bytes: int) -> None:
        self.table = new_table()
        self._max_bytes = max_bytes
        self._max_missing = 0

    def add(self, table: PieceTable) -> None:
        """Add the counts of a batch; drop the rarest pieces when there are too many."""
        self.table = _with_added(self.table, table.arena, *_used(table), floor=0)
        if table_bytes(self.table.num_pieces, self.table.num_bytes) > self._max_bytes:
            self._drop_rare()

    def finish(self) -> PieceCounts:
        """Return the counts; say what they lack."""
        if self._max_missing:
            _logger.warning(
                "different pieces outgrew max_bytes=%d, and rare ones were dropped on the way: a "
                "count may be up to %d short; raise max_bytes, or use less text",
                self._max_bytes,
                self._max_missing,
            )
        return PieceCounts._of_table(self.table, self._max_missing)

    def _drop_rare(self) -> None:
        starts, counts = _used(self.table)
        floor = _floor(starts, counts, self._max_bytes // 2)
        kept = counts > floor
        room = new_table(int(kept.sum()), int(np.diff(starts)[kept].sum()))
        self.table = _with_added(room, self.table.arena, starts, counts, floor=floor)
        self._max_missing += floor


def _floor(starts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], max_bytes: int) -> int:
    """Return the smallest count such that the pieces seen more often fit."""
    order = np.argsort(counts, kind="stable")
    sizes = np.diff(starts)[order]
    sizes *= table_bytes(0, 1)
    sizes += table_bytes(1, 0)
    total = np.cumsum(sizes, out=sizes)
    return int(counts[order[np.searchsorted(total, total[-1] - max_bytes)]])


def _used(table: PieceTable) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    return table.starts[: table.num_pieces + 1], table.counts[: table.num_pieces]


def _frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    copied = array.copy()
    copied.flags.writeable = False
    return copied


def _num_cores() -> int:
    return os.cpu_count() or 1


def _counted(
    stream: Iterable[Batch], rules: ScanRules, num_threads: int
) -> Iterator[tuple[Batch, PieceTable]]:
    """Yield batches with their counts in order, a few of them counted ahead."""
    ahead: deque[tuple[Batch, Future[PieceTable]]] = deque()
    pool = ThreadPoolExecutor(num_threads)
    try:
        for batch in stream:
            ahead.append((batch, pool.submit(_count_batch, batch, rules)))
            if len(ahead) > num_threads:
                first, counts = ahead.popleft()
                yield first, counts.result()
        while ahead:
            first, counts = ahead.popleft()
            yield first, counts.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _count_batch(batch: Batch, rules: ScanRules) -> PieceTable:
    table = new_table()
    classes = classes_for(rules)
    text = at = 0
    while True:
        text, at, end = _count_from(batch.data, batch.bounds, text, at, classes, rules, table)
        if at == batch.data.size:
            return table
        table = grown(table, _num_parts(end - at), end - at)


def _with_added(
    table: PieceTable,
    data: npt.NDArray[np.uint8],
    starts: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    *,
    floor: int,
) -> PieceTable:
    """Add the pieces seen more often than `floor` to a table; return it, or its larger self."""
    piece = _add_from(table, data, starts, counts, 0, floor)
    while piece < counts.size:
        table = grown(table, 1, int(starts[piece + 1] - starts[piece]))
        piece = _add_from(table, data, starts, counts, piece, floor)
    return table


@compiled_inner
def _count_from(
    data: Any, bounds: Any, text: int, at: int, classes: Any, rules: Any, table: Any
) -> tuple[int, int, int]:
    """Count pieces from a place on, until the end or the first piece that finds no room.

    Returns:
        The text, and where the piece that found no room begins and ends; the end of the data
        when there was room for all.
    """
    for number in range(text, bounds.size - 1):
        stop = bounds[number + 1]
        while at < stop:
            end = piece_end(data, at, stop, classes, rules)
            if not has_room(table, _num_parts(end - at), end - at):
                return number, at, end
            while end - at > MAX_PIECE_BYTES:
                part = _part_end(data, at, rules.family)
                add_piece(table, data, at, part, 1)
                at = part
            add_piece(table, data, at, end, 1)
            at = end
    return bounds.size - 1, at, at


@compiled_inner
def _num_parts(num_bytes: int) -> int:
    """Return in how many parts a piece is counted, at most; a part may be 3 bytes shorter."""
    return num_bytes // (MAX_PIECE_BYTES - 3) + 1


@compiled_inner
def _part_end(data: Any, at: int, family: int) -> int:
    """End a part; where models read characters rather than bytes, between two of them."""
    end = at + MAX_PIECE_BYTES
    if family in (WHITESPACE, METASPACE, BERT):
        while data[end] & 0xC0 == 0x80:
            end -= 1
    return end


@compiled_inner
def _add_from(table: Any, data: Any, starts: Any, counts: Any, piece: int, floor: int) -> int:
    """Add counted pieces from number `piece` on; return the first one without room."""
    while piece < counts.size:
        if counts[piece] > floor:
            if not has_room(table, 1, starts[piece + 1] - starts[piece]):
                return piece
            add_piece(table, data, starts[piece], starts[piece + 1], counts[piece])
        piece += 1
    return piece
