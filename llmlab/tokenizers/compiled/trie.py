"""A trie over bytes in one array: which pieces start at a place of a text.

A double array: the child of a node by byte b is at row `base ^ b`, and it is one if it names the
node as its parent; a step is one look-up. Building takes the pieces in order and puts the
children of a node where enough rows are free; free rows form a ring through row 0, the root.

Source: Aoe 1989, "An efficient digital search algorithm by using a double-array structure".
"""

from typing import Any

import numpy as np

from llmlab.tokenizers.compiled.jit import compiled, compiled_inner

Place = np.uint64
"""Type of an index in the loops that matter: numba looks whether a signed one is negative, which
makes walking the trie four times slower."""

ROOT = Place(0)

BASE, PARENT, VALUE = Place(0), Place(1), Place(2)
"""Columns of a trie; VALUE is the number of the piece that ends at the node, or -1."""

_BLOCK = 256
"""The children of a node lie within one block of rows."""

_TRIES = 32
"""Free rows tried for the children of a node before a new block is begun."""

_NEXT, _LAST = 0, 1  # columns of `free`


@compiled
def build_trie(data: Any, starts: Any, lengths: Any) -> Any:
    """Return the trie of pieces, (rows, 4) int32; row 0 is its root.

    Args:
        data: (bytes,) uint8.
        starts: (n,) int64; piece i is `data[starts[i] : starts[i] + lengths[i]]`.
        lengths: (n,) int64. The pieces are sorted by their bytes, distinct and not empty.
    """
    nodes = _more_rows(np.empty((0, 4), np.int32), 8 * _BLOCK)
    free = np.zeros((8 * _BLOCK, 2), np.int32)
    nodes[ROOT, BASE] = 0
    used = _begin_block(free, 0)
    stack = np.empty((starts.size + 1, 4), np.int64)  # (first piece, end, depth, row)
    stack[0, 0], stack[0, 1], stack[0, 2], stack[0, 3] = 0, starts.size, 0, 0
    height = 1
    labels, ends = np.empty(_BLOCK, np.int64), np.empty(_BLOCK, np.int64)
    while height > 0:
        height -= 1
        first, end = stack[height, 0], stack[height, 1]
        depth, row = stack[height, 2], stack[height, 3]
        if first < end and lengths[first] == depth:
            nodes[row, VALUE] = first
            first += 1
        count = _branches(data, starts, first, end, depth, labels, ends)
        if count == 0:
            continue
        base = _find_base(nodes, free, labels, count)
        if base < 0:
            if used + _BLOCK > nodes.shape[0]:
                nodes, free = _more_rows(nodes, used), _more_rows(free, used)
            base = used
            used = _begin_block(free, used)
        nodes[row, BASE] = base
        for branch in range(count - 1, -1, -1):
            child = base ^ labels[branch]
            _take(free, child)
            nodes[child, BASE], nodes[child, PARENT] = 0, row
            stack[height, 0] = ends[branch - 1] if branch else first
            stack[height, 1], stack[height, 2], stack[height, 3] = ends[branch], depth + 1, child
            height += 1
    return nodes[:used]


@compiled_inner
def _branches(
    data: Any, starts: Any, first: int, end: int, depth: int, labels: Any, ends: Any
) -> int:
    """Note each byte that follows and the end of the pieces it follows in; return how many."""
    count = 0
    for piece in range(first, end):
        label = np.int64(data[starts[piece] + depth])
        if count == 0 or labels[count - 1] != label:
            labels[count] = label
            count += 1
        ends[count - 1] = piece + 1
    return count


@compiled_inner
def _find_base(nodes: Any, free: Any, labels: Any, count: int) -> int:
    """Return a base at which a row is free for every label, or -1."""
    row = np.int64(free[0, _NEXT])
    for _ in range(_TRIES):
        if row == 0:
            break
        base = row ^ labels[0]
        fits = True
        for branch in range(1, count):
            other = base ^ labels[branch]
            fits &= other != 0 and nodes[other, PARENT] < 0
        if fits:
            return base
        row = np.int64(free[row, _NEXT])
    return -1


@compiled_inner
def _take(free: Any, row: int) -> None:
    before, after = free[row, _LAST], free[row, _NEXT]
    free[before, _NEXT], free[after, _LAST] = after, before


@compiled_inner
def _begin_block(free: Any, start: int) -> int:
    """Add a block of rows to the ring, at its end, and return where the block ends."""
    for row in range(max(start, 1), start + _BLOCK):
        last = free[0, _LAST]
        free[last, _NEXT], free[row, _LAST] = row, last
        free[row, _NEXT], free[0, _LAST] = 0, row
    return start + _BLOCK


@compiled
def _more_rows(array: Any, more: int) -> Any:
    """Return a longer copy, -1 in the new rows; slices would take seconds to compile."""
    rows, columns = array.shape
    grown = np.full((rows + more, columns), np.int32(-1))
    for row in range(rows):
        for column in range(columns):
            grown[row, column] = array[row, column]
    return grown
