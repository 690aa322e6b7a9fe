"""A hash table from byte strings to counts: five arrays that compiled loops fill.

The pieces lie one after the other in `arena` in the order in which they came; piece i is
`arena[starts[i] : starts[i + 1]]` and was counted `counts[i]` times. `slots` leads from a hash to
the number of a piece: open addressing, at most half full. Compiled code asks `has_room` before it
adds; the arrays grow in Python, by doubling.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from llmlab.tokenizers.compiled.jit import compiled_inner

_NUM_PIECES = 1 << 12
_NUM_BYTES = 1 << 16
_HASH_START = np.uint64(0xCBF29CE484222325)
_HASH_FACTOR = np.uint64(0x100000001B3)
_HALF = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)
_ONE = np.uint64(1)
_EMPTY = np.uint64(0)


class PieceTable(NamedTuple):
    """The arrays of a table; `grown` returns new ones."""

    slots: npt.NDArray[np.uint64]
    """(2 * max_pieces,) upper half of the hash, and the piece's number plus one; 0 is empty."""

    starts: npt.NDArray[np.int64]
    """(max_pieces + 1,) where pieces begin in the arena."""

    counts: npt.NDArray[np.int64]
    """(max_pieces,)"""

    arena: npt.NDArray[np.uint8]
    """(max_bytes,) the pieces."""

    used: npt.NDArray[np.int64]
    """(1,) how many pieces there are."""

    @property
    def num_pieces(self) -> int:
        """How many different pieces there are."""
        return int(self.used[0])

    @property
    def num_bytes(self) -> int:
        """How long they are together."""
        return int(self.starts[self.num_pieces])


def new_table(num_pieces: int = _NUM_PIECES, num_bytes: int = _NUM_BYTES) -> PieceTable:
    """Return an empty table with room for so many pieces of so many bytes in all."""
    max_pieces = 1 << max(num_pieces - 1, 1).bit_length()
    return PieceTable(
        slots=np.zeros(2 * max_pieces, np.uint64),
        starts=np.zeros(max_pieces + 1, np.int64),
        counts=np.zeros(max_pieces, np.int64),
        arena=np.zeros(max(num_bytes, 1), np.uint8),
        used=np.zeros(1, np.int64),
    )


def grown(table: PieceTable, num_pieces: int, num_bytes: int) -> PieceTable:
    """Return the table with room for so many pieces and bytes more, at least doubled where full."""
    if table.num_pieces + num_pieces > table.counts.size:
        max_pieces = 1 << (table.num_pieces + num_pieces - 1).bit_length()
        slots = np.zeros(2 * max_pieces, np.uint64)
        _fill_slots(slots, table.starts, table.arena, table.num_pieces)
        starts = _longer(table.starts, max_pieces + 1)
        table = table._replace(slots=slots, starts=starts, counts=_longer(table.counts, max_pieces))
    needed = table.num_bytes + num_bytes
    if needed > table.arena.size:
        table = table._replace(arena=_longer(table.arena, max(needed, 2 * table.arena.size)))
    return table


def table_bytes(num_pieces: int, num_bytes: int) -> int:
    """Return how much memory a table takes at most.

    Just filled it is 32 bytes a piece and one for each byte of them, just doubled twice that, and
    while it doubles there are both.
    """
    return 96 * num_pieces + 3 * num_bytes


@compiled_inner
def has_room(table: Any, num_pieces: int, num_bytes: int) -> bool:
    """Whether so many pieces of so many bytes in all can be added."""
    after = table.used[0] + num_pieces
    return (
        after <= table.counts.size and table.starts[table.used[0]] + num_bytes <= table.arena.size
    )


@compiled_inner
def add_piece(table: Any, data: Any, start: int, end: int, count: int) -> None:
    """Count `data[start:end]` so many times more; a new piece must have room."""
    hashed = _hash(data, start, end)
    last = np.uint64(table.slots.size - 1)
    slot = hashed & last
    while table.slots[slot] != _EMPTY:
        found = table.slots[slot]
        piece = np.int64(found & _LOW) - 1
        if found >> _HALF == hashed >> _HALF and _is_piece(table, piece, data, start, end):
            table.counts[piece] += count
            return
        slot = (slot + _ONE) & last
    piece = table.used[0]
    table.used[0] = piece + 1
    table.slots[slot] = (hashed >> _HALF) << _HALF | np.uint64(piece + 1)
    table.counts[piece] = count
    begin = table.starts[piece]
    for at in range(end - start):
        table.arena[begin + at] = data[start + at]
    table.starts[piece + 1] = begin + end - start


@compiled_inner
def _is_piece(table: Any, piece: int, data: Any, start: int, end: int) -> bool:
    length = end - start
    begin = table.starts[piece]
    if table.starts[piece + 1] - begin != length:
        return False
    at = 0
    while at < length and table.arena[begin + at] == data[start + at]:
        at += 1
    return at == length


@compiled_inner
def _hash(data: Any, start: int, end: int) -> Any:
    """Return 64 bits of FNV-1a, the upper ones folded into the lower, which choose the slot."""
    hashed = _HASH_START
    for at in range(start, end):
        hashed = (hashed ^ np.uint64(data[at])) * _HASH_FACTOR
    return hashed ^ (hashed >> _HALF)


@compiled_inner
def _fill_slots(slots: Any, starts: Any, arena: Any, num_pieces: int) -> None:
    last = np.uint64(slots.size - 1)
    for piece in range(num_pieces):
        hashed = _hash(arena, starts[piece], starts[piece + 1])
        slot = hashed & last
        while slots[slot] != _EMPTY:
            slot = (slot + _ONE) & last
        slots[slot] = (hashed >> _HALF) << _HALF | np.uint64(piece + 1)


def _longer(array: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    longer = np.zeros(size, array.dtype)
    longer[: array.size] = array
    return longer
