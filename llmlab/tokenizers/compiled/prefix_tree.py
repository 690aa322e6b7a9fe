"""Words as trees of their beginnings: the pieces at every place, looked up once for words alike.

Words in the order of their bytes begin as the word before does, on ordinary text with more than
half of their bytes. A block is some words in a row as one tree: node 0 is no byte yet, each other
node is one byte more than another; a node is numbered after all those on the way to it. An edge
leads from a node to a later one, over the bytes of a piece. What is summed over the edges of the
tree, once each, is what would be summed over all words one by one. Not here: the sums
(expectation.py).
"""

from typing import Any, NamedTuple

import numpy as np

from llmlab.tokenizers.compiled.jit import compiled, compiled_inner
from llmlab.tokenizers.compiled.trie import BASE, PARENT, ROOT, VALUE, Place

_BLOCK_NODES = 4096
"""A block with so many nodes takes no more words: its sums stay in a core's cache."""

FROM, TO, PIECE = Place(0), Place(1), Place(2)  # columns of `edges`
_NODE, _ROW = Place(0), Place(1)  # columns of `begun`


class Block(NamedTuple):
    """Room for a block."""

    edges: Any
    """(max_edges, 3) int32: from, to and piece, by `to`, then by `from`."""

    ends: Any
    """(max_words,) int32: the node of each whole word."""

    path: Any
    """(longest + 1,) int32: the nodes of the last word, by depth."""

    begun: Any
    """(rows, 2) int32: pieces begun at each depth of the path: their start, a row of the trie."""

    begun_bounds: Any
    """(longest + 2,) int64: the pieces begun at a depth are between this and the next."""


@compiled
def new_block(words: Any, first: int, last: int, max_len: int) -> Any:
    """Return room for any block of these words.

    Args:
        words: `Words`.
        first: the first word.
        last: one past the last word.
        max_len: bytes of the longest piece.
    """
    longest = 0
    for word in range(first, last):
        longest = max(longest, words.bounds[word, 1] - words.bounds[word, 0])
    max_nodes = _BLOCK_NODES + longest
    return Block(
        np.empty((max_nodes * max_len, 3), np.int32),
        np.empty(_BLOCK_NODES, np.int32),
        np.empty(longest + 1, np.int32),
        np.empty(((longest + 1) * (max_len + 1), 2), np.int32),
        np.empty(longest + 2, np.int64),
    )


@compiled_inner
def fill_block(words: Any, first: int, last: int, nodes: Any, block: Block) -> tuple[int, int, int]:
    """Make a block of words from number `first` on.

    Args:
        words: `Words`, in the order of their bytes.
        first: the first word.
        last: one past the last word that may be in it.
        nodes: the trie of the pieces.
        block: receives it.

    Returns:
        One past the last word, how many nodes there are, how many edges.
    """
    text, bounds = words.text, words.bounds
    num_nodes, num_edges = 1, 0
    block.path[0] = 0
    block.begun[0, _NODE], block.begun[0, _ROW] = 0, 0
    block.begun_bounds[0], block.begun_bounds[1] = 0, 1
    word = first
    while word < last and num_nodes < _BLOCK_NODES and word - first < block.ends.size:
        start, end = bounds[word, 0], bounds[word, 1]
        depth = 0
        if word > first:
            depth = _num_alike(text, start, end, bounds[word - 1, 0], bounds[word - 1, 1])
        for at in range(start + depth, end):
            num_edges = _add_node(text[at], at - start, num_nodes, num_edges, nodes, block)
            num_nodes += 1
        block.ends[word - first] = block.path[end - start]
        word += 1
    return word, num_nodes, num_edges


@compiled_inner
def _num_alike(text: Any, start: int, end: int, other: int, other_end: int) -> int:
    """Return how many bytes two words begin with that are the same."""
    size, other_size = end - start, other_end - other
    count = 0
    while count < size and count < other_size and text[start + count] == text[other + count]:
        count += 1
    return count


@compiled_inner
def _add_node(byte: int, depth: int, node: int, num_edges: int, nodes: Any, block: Block) -> Any:
    """Add the node one byte below the one at this depth; return the number of edges then."""
    edges, begun = block.edges, block.begun
    label = Place(byte)
    edge = Place(num_edges)
    first, end = Place(block.begun_bounds[depth]), Place(block.begun_bounds[depth + 1])
    top = end
    while first < end:
        row = Place(begun[first, _ROW])
        child = Place(nodes[row, BASE]) ^ label
        if Place(nodes[child, PARENT]) == row:
            start, piece = begun[first, _NODE], nodes[child, VALUE]
            begun[top, _NODE], begun[top, _ROW] = start, child
            top += Place(1)
            if piece >= 0:
                edges[edge, FROM], edges[edge, TO], edges[edge, PIECE] = start, node, piece
                edge += Place(1)
        first += Place(1)
    begun[top, _NODE], begun[top, _ROW] = node, ROOT
    block.begun_bounds[depth + 2] = np.int64(top) + 1
    block.path[depth + 1] = node
    return np.int64(edge)
