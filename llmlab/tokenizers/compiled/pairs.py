"""The pairs of neighbouring tokens that may still be merged: a hash table and a heap over it.

The table is open-addressed and holds, for each pair, how often it occurs (64 bits) and where (a
stretch of the list of places, see learning.py). The heap gives the most frequent pair. Counts only
sink after a pair is in the heap, so an entry is an upper bound, corrected when it comes to the top.
Neither grows by itself: `has_room` asks, `rebuilt` copies what is alive into a larger pair of them.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmlab.tokenizers.compiled.jit import compiled_inner

MISSING = -1

_FREE = -1
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: neighbouring keys land far apart
_HIGH_HALF = np.uint64(32)
_MIN_CAPACITY = 2**12


class PairTable(NamedTuple):
    """Pairs with their counts; `keys[slot]` says whose slot it is."""

    keys: NDArray[np.int64]
    """`pair_key` of the pair, or a negative number."""

    totals: NDArray[np.int64]
    """How often it occurs."""

    firsts: NDArray[np.int64]
    """Where its places start in the list of places."""

    nums: NDArray[np.int64]
    """How many places it has."""

    num_pairs: NDArray[np.int64]
    """One number: slots taken."""


class PairHeap(NamedTuple):
    """Pairs by count; the parent of node i is node (i - 1) // 2."""

    totals: NDArray[np.int64]
    keys: NDArray[np.int64]
    size: NDArray[np.int64]
    """One number: nodes in use."""


def new_table(min_pairs: int) -> PairTable:
    """Return an empty table with room for `min_pairs` pairs, at most half full then."""
    capacity = _MIN_CAPACITY
    while capacity < 2 * min_pairs:
        capacity *= 2
    return PairTable(
        keys=np.full(capacity, _FREE, np.int64),
        totals=np.zeros(capacity, np.int64),
        firsts=np.zeros(capacity, np.int64),
        nums=np.zeros(capacity, np.int64),
        num_pairs=np.zeros(1, np.int64),
    )


def rebuilt(table: PairTable, *, min_total: int, more: int) -> tuple[PairTable, PairHeap]:
    """Return a table and a heap of the pairs seen `min_total` times, with room for more.

    Args:
        table: left as it is.
        min_total: a rarer pair is dropped.
        more: pairs there must be room for; there is room for as many again as are alive.
    """
    alive = int(np.count_nonzero((table.keys >= 0) & (table.totals >= min_total)))
    larger = new_table(2 * alive + more)
    room = len(larger.keys) // 2
    heap = PairHeap(np.empty(room, np.int64), np.empty(room, np.int64), np.zeros(1, np.int64))
    _refill(table, larger, heap, min_total)
    return larger, heap


@compiled_inner
def pair_key(left: int, right: int) -> int:
    """Return a pair of int64 as one number, in order by left id, then right id."""
    return (left << 32) | right


@compiled_inner
def has_room(table: PairTable, more: int) -> bool:
    """Say whether `more` pairs can be added."""
    return 2 * (table.num_pairs[0] + more) <= len(table.keys)


@compiled_inner
def find(table: PairTable, key: int) -> int:
    """Return the slot of a pair, or MISSING."""
    slot = _slot(table, key)
    return slot if table.keys[slot] == key else MISSING


@compiled_inner
def find_or_add(table: PairTable, key: int) -> int:
    """Return the slot of a pair, a new one where there was none."""
    slot = _slot(table, key)
    if table.keys[slot] != key:
        table.keys[slot] = key
        table.num_pairs[0] += 1
    return slot


@compiled_inner
def _slot(table: PairTable, key: int) -> int:
    mask = len(table.keys) - 1
    slot: Any = np.int64((np.uint64(key) * _SPREAD) >> _HIGH_HALF) & mask
    while table.keys[slot] != key and table.keys[slot] != _FREE:
        slot = (slot + 1) & mask
    return slot


@compiled_inner
def best_pair(table: PairTable, heap: PairHeap, min_total: int) -> int:
    """Return the slot of the most frequent pair, or MISSING when none occurs `min_total` times.

    Of equally frequent pairs it is the one with the smallest left id, then right id.
    """
    while heap.size[0] > 0:
        slot = find(table, heap.keys[0])
        total = table.totals[slot]
        if total == heap.totals[0]:
            return slot
        if total >= min_total:
            _sink(heap, 0, total, heap.keys[0])
        else:
            last = heap.size[0] - 1
            heap.size[0] = last
            _sink(heap, 0, heap.totals[last], heap.keys[last])
    return MISSING


@compiled_inner
def push(heap: PairHeap, total: int, key: int) -> None:
    """Add a pair to the heap."""
    node = heap.size[0]
    heap.size[0] = node + 1
    while node > 0:
        parent = (node - 1) >> 1
        if not _before(total, key, heap.totals[parent], heap.keys[parent]):
            break
        heap.totals[node], heap.keys[node] = heap.totals[parent], heap.keys[parent]
        node = parent
    heap.totals[node], heap.keys[node] = total, key


@compiled_inner
def _sink(heap: PairHeap, node: int, total: int, key: int) -> None:
    """Put a pair at a node or below it, wherever it belongs."""
    size = heap.size[0]
    while True:
        child = 2 * node + 1
        if child >= size:
            break
        other = child + 1
        if other < size and _before(
            heap.totals[other], heap.keys[other], heap.totals[child], heap.keys[child]
        ):
            child = other
        if not _before(heap.totals[child], heap.keys[child], total, key):
            break
        heap.totals[node], heap.keys[node] = heap.totals[child], heap.keys[child]
        node = child
    heap.totals[node], heap.keys[node] = total, key


@compiled_inner
def _before(total: int, key: int, other_total: int, other_key: int) -> bool:
    return total > other_total or (total == other_total and key < other_key)


@compiled_inner
def _refill(table: PairTable, larger: PairTable, heap: PairHeap, min_total: int) -> None:
    for old in range(len(table.keys)):
        if table.keys[old] >= 0 and table.totals[old] >= min_total:
            slot = find_or_add(larger, table.keys[old])
            larger.totals[slot] = table.totals[old]
            larger.firsts[slot] = table.firsts[old]
            larger.nums[slot] = table.nums[old]
            push(heap, table.totals[old], table.keys[old])
