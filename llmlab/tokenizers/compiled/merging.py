"""Byte-pair merging of one pre-token: the compiled twin of models/bpe.py.

The lowest-ranked merge is applied first, the leftmost of equals, one at a time, until none
applies. A short pre-token finds it by looking at every candidate; a long one keeps the candidates
in a heap over a linked list, so n ids take O(n log n). Not here: caching, cutting (encoding.py).

Merges lie in one open-addressing table. A row is a pair, `left << 32 | right`, and what it
becomes, `rank << 32 | made`: comparing what two pairs become compares their ranks.

Source: Sennrich et al., arXiv:1508.07909.
"""

from typing import Any

import numpy as np

from llmlab.tokenizers.compiled.jit import compiled, compiled_inner

SHORT_LEN = 64
"""Ids up to which looking at every candidate is no slower than a heap (measured on letters)."""

NONE = np.uint64(2**64 - 1)
"""An empty row of the table; also what a pair without a merge becomes."""

_MIX = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)
_LOW = np.uint64(2**32 - 1)
_ONE = np.uint64(1)


def pair_table(num_merges: int) -> Any:
    """Return an empty table for so many merges, (rows, 2) uint64; at most half gets filled."""
    return np.full((1 << max(2 * num_merges, 2).bit_length(), 2), NONE)


@compiled_inner
def _row_of(pairs: Any, pair: np.uint64) -> np.uint64:
    """Return the row of a pair, or the empty row where it belongs."""
    last = np.uint64(pairs.shape[0] - 1)
    mixed = pair * _MIX
    row = (mixed ^ (mixed >> _HALF)) & last
    while pairs[row, 0] != pair and pairs[row, 0] != NONE:
        row = (row + _ONE) & last
    return row


@compiled
def fill_pairs(pairs: Any, merges: Any) -> None:
    """Enter merges, (num_merges, 3) uint32 rows of left, right and made id, best first.

    A pair that is there twice keeps its last rank.
    """
    for rank in range(merges.shape[0]):
        pair = np.uint64(merges[rank, 0]) << _HALF | np.uint64(merges[rank, 1])
        row = _row_of(pairs, pair)
        pairs[row, 0] = pair
        pairs[row, 1] = np.uint64(rank) << _HALF | np.uint64(merges[rank, 2])


@compiled_inner
def _becomes(pairs: Any, left: Any, right: Any) -> Any:
    """Return what two ids become, or NONE."""
    return pairs[_row_of(pairs, np.uint64(left) << _HALF | np.uint64(right)), 1]


@compiled
def merge(ids: Any, first: int, num_ids: int, pairs: Any, scratch: Any) -> int:
    """Merge ids where they stand and return how many are left.

    Args:
        ids: uint32; those of the pre-token begin at `first`.
        first: where.
        num_ids: how many.
        pairs: the table of merges.
        scratch: `SHORT_LEN` uint64, overwritten.
    """
    if num_ids < 2:
        return num_ids
    if num_ids <= SHORT_LEN:
        return _merge_short(ids, first, num_ids, pairs, scratch)
    return _merge_long(ids, first, num_ids, pairs)


@compiled_inner
def _merge_short(ids: Any, first: int, num_ids: int, pairs: Any, becomes: Any) -> int:
    last = num_ids - 1
    for at in range(last):
        becomes[at] = _becomes(pairs, ids[first + at], ids[first + at + 1])
    while last > 0:
        best = 0
        for at in range(1, last):
            if becomes[at] < becomes[best]:
                best = at
        if becomes[best] == NONE:
            break
        ids[first + best] = becomes[best] & _LOW
        last -= 1
        for at in range(best + 1, last + 1):
            ids[first + at] = ids[first + at + 1]
            becomes[at - 1] = becomes[at]
        if best > 0:
            becomes[best - 1] = _becomes(pairs, ids[first + best - 1], ids[first + best])
        if best < last:
            becomes[best] = _becomes(pairs, ids[first + best], ids[first + best + 1])
    return last + 1


@compiled
def _merge_long(ids: Any, first: int, num_ids: int, pairs: Any) -> int:
    """Merge with a heap over a linked list; takes about 50 bytes of memory an id."""
    made = np.empty(num_ids, np.uint32)
    after = np.empty(num_ids, np.uint32)
    before = np.empty(num_ids, np.int32)
    becomes = np.empty(num_ids, np.uint64)
    heap = np.empty(3 * num_ids, np.uint64)  # a merge adds two candidates at most
    for at in range(num_ids):
        made[at], after[at], before[at] = ids[first + at], at + 1, at - 1
    becomes[num_ids - 1] = NONE
    size = 0
    for at in range(num_ids - 1):
        size = _offer(heap, size, becomes, at, _becomes(pairs, made[at], made[at + 1]))
    while size > 0:
        candidate = heap[0]
        size = _pop(heap, size)
        at = np.int64(candidate & _LOW)
        if becomes[at] == NONE or becomes[at] >> _HALF != candidate >> _HALF:
            continue  # one of the two was merged away meanwhile
        made[at] = becomes[at] & _LOW
        becomes[at] = becomes[after[at]] = NONE
        right = after[at] = after[after[at]]
        if right < num_ids:
            before[right] = at
            size = _offer(heap, size, becomes, at, _becomes(pairs, made[at], made[right]))
        left = before[at]
        if left >= 0:
            size = _offer(heap, size, becomes, left, _becomes(pairs, made[left], made[at]))
    return _gather(made, after, ids, first)


@compiled_inner
def _gather(made: Any, after: Any, ids: Any, first: int) -> int:
    """Write the ids of the linked list one behind another and return how many there are."""
    count, at = 0, np.int64(0)
    while at < made.shape[0]:
        ids[first + count] = made[at]
        count += 1
        at = np.int64(after[at])
    return count


@compiled_inner
def _offer(heap: Any, size: int, becomes: Any, at: int, found: np.uint64) -> int:
    """Note what the pair at a place becomes now and queue it; return the size of the heap."""
    becomes[at] = found
    if found == NONE:
        return size
    entry = (found & ~_LOW) | np.uint64(at)
    hole = size
    while hole > 0 and entry < heap[(hole - 1) // 2]:
        heap[hole] = heap[(hole - 1) // 2]
        hole = (hole - 1) // 2
    heap[hole] = entry
    return size + 1


@compiled_inner
def _pop(heap: Any, size: int) -> int:
    """Take the lowest candidate off the heap and return the new size."""
    size -= 1
    entry, hole, child = heap[size], 0, 1
    while child < size:
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if entry <= heap[child]:
            break
        heap[hole] = heap[child]
        hole, child = child, 2 * child + 1
    heap[hole] = entry
    return size
