"""What training a Unigram model counts: pieces over all segmentations, and over the best ones.

The expected count of a piece sums, over all ways to cut a word, the way's share of the word's
probability (forward-backward). Sums are of probabilities as such, each divided by a constant to
the power of its length so that they stay near 1; where one leaves float64's range all the same,
the block of words is done again in logarithms. Words go by blocks (prefix_tree.py): ways to a
common beginning are summed once, and so are shares of the words behind it. Not here: threads and
the M-step (../trainers/unigram.py).

Source: Kudo, arXiv:1804.10959, section 3.2.
"""

from typing import Any, NamedTuple

import numpy as np

from llmlab.tokenizers.compiled.jit import compiled, compiled_inner
from llmlab.tokenizers.compiled.prefix_tree import FROM, PIECE, TO, Block, fill_block, new_block
from llmlab.tokenizers.compiled.trie import BASE, PARENT, ROOT, VALUE, Place

_SMALLEST, _LARGEST = 1e-120, 1e120
"""Forward sums within these leave room for the backward ones."""

_LENGTH, _LAST = Place(0), Place(1)  # columns of `steps`


class Words(NamedTuple):
    """Words in about the order of their bytes, and how often each is there."""

    text: Any
    """(bytes,) uint8: UTF-8 of all of them."""

    bounds: Any
    """(num_words, 2) int64: where each starts and ends in `text`."""

    counts: Any
    """(num_words,) int64."""


class Scored(NamedTuple):
    """Pieces and their probabilities."""

    nodes: Any
    """(rows, 4) int32: the trie of the pieces; every character of the words is one."""

    scores: Any
    """(n,) float64: log-probabilities."""

    scaled: Any
    """(n,) float64: probabilities, each divided by `exp(byte_score)` for every byte."""

    byte_score: float
    """About what a byte adds to the log-probability of a word."""


@compiled
def add_expected(
    words: Words, first: int, last: int, pieces: Scored, max_len: int, expected: Any
) -> Any:
    """Add the expected counts of the pieces in some words; return their log-likelihood.

    Args:
        words: all words.
        first: the first word counted here.
        last: one past the last word counted here.
        pieces: all pieces.
        max_len: bytes of the longest piece.
        expected: (n,) float64; receives the counts.
    """
    nodes, scores, scaled, byte_score = pieces
    block = new_block(words, first, last, max_len)
    values = np.empty(block.edges.shape[0])
    max_nodes = values.size // max_len
    forward, backward = np.empty(max_nodes), np.empty(max_nodes)
    total, word = 0.0, first
    while word < last:
        end, num_nodes, num_edges = fill_block(words, word, last, nodes, block)
        size = (num_nodes, num_edges)
        if _forward(block, size, end - word, scaled, values, forward):
            _backward(words, word, end, block, size, values, forward, backward, expected)
            total += _log_likelihood(words, word, end, block, forward, byte_score)
        else:
            total += _in_logs(words, word, end, block, size, scores, forward, backward, expected)
        word = end
    return total


@compiled_inner
def _forward(
    block: Block, size: tuple[int, int], num_words: int, scaled: Any, values: Any, forward: Any
) -> bool:
    """Sum the ways to every node; return whether float64 could hold the sums."""
    num_nodes, num_edges = size
    edges, ends = block.edges, block.ends
    for node in range(num_nodes):
        forward[node] = 0.0
    forward[0] = 1.0
    fits = True
    for number in range(num_edges):
        edge = Place(number)
        so_far, value = forward[Place(edges[edge, FROM])], scaled[Place(edges[edge, PIECE])]
        fits &= _SMALLEST < so_far < _LARGEST
        values[edge] = value
        forward[Place(edges[edge, TO])] += so_far * value
    for word in range(num_words):
        fits &= _SMALLEST < forward[ends[word]] < _LARGEST
    return fits


@compiled_inner
def _backward(
    words: Words,
    first: int,
    last: int,
    block: Block,
    size: tuple[int, int],
    values: Any,
    forward: Any,
    backward: Any,
    expected: Any,
) -> None:
    """Sum the ways from every node to the words behind it, and add each piece's share."""
    num_nodes, num_edges = size
    edges = block.edges
    for node in range(num_nodes):
        backward[node] = 0.0
    for word in range(first, last):
        end = block.ends[word - first]
        backward[end] += np.float64(words.counts[word]) / forward[end]
    for number in range(num_edges - 1, -1, -1):
        edge = Place(number)
        node = Place(edges[edge, FROM])
        way = values[edge] * backward[Place(edges[edge, TO])]
        backward[node] += way
        expected[Place(edges[edge, PIECE])] += way * forward[node]


@compiled_inner
def _log_likelihood(
    words: Words, first: int, last: int, block: Block, forward: Any, byte_score: float
) -> float:
    total = 0.0
    for word in range(first, last):
        size = words.bounds[word, 1] - words.bounds[word, 0]
        log_sum = np.log(forward[block.ends[word - first]]) + size * byte_score
        total += words.counts[word] * log_sum
    return total


@compiled_inner
def _in_logs(
    words: Words,
    first: int,
    last: int,
    block: Block,
    size: tuple[int, int],
    scores: Any,
    forward: Any,
    backward: Any,
    expected: Any,
) -> float:
    """Do both in logarithms; return the log-likelihood of the words."""
    num_nodes, num_edges = size
    edges = block.edges
    for node in range(num_nodes):
        forward[node] = backward[node] = -np.inf
    forward[0] = 0.0
    for edge in range(num_edges):
        node, to = edges[edge, FROM], edges[edge, TO]
        forward[to] = np.logaddexp(forward[to], forward[node] + scores[edges[edge, PIECE]])
    total = 0.0
    for word in range(first, last):
        end, count = block.ends[word - first], np.float64(words.counts[word])
        backward[end] = np.logaddexp(backward[end], np.log(count) - forward[end])
        total += count * forward[end]
    for edge in range(num_edges - 1, -1, -1):
        node, to, piece = edges[edge, FROM], edges[edge, TO], edges[edge, PIECE]
        way = scores[piece] + backward[to]
        backward[node] = np.logaddexp(backward[node], way)
        expected[piece] += np.exp(way + forward[node])
    return total


@compiled
def add_best(words: Words, first: int, last: int, pieces: Scored, max_len: int, used: Any) -> Any:
    """Add how often each piece is used when every word is cut in the best way.

    Args:
        words: all words.
        first: the first word counted here.
        last: one past the last word counted here.
        pieces: all pieces.
        max_len: bytes of the longest piece.
        used: (n,) int64; receives the counts.

    Returns:
        The log-probability of those segmentations.
    """
    nodes, scores, _, _ = pieces
    block = new_block(words, first, last, max_len)
    max_nodes = block.edges.shape[0] // max_len
    best, steps = np.empty(max_nodes), np.empty((max_nodes, 2), np.int32)
    passed = np.empty(max_nodes, np.int64)
    total, word = 0.0, first
    while word < last:
        end, num_nodes, num_edges = fill_block(words, word, last, nodes, block)
        _best_ways(block, (num_nodes, num_edges), scores, best, steps)
        total += _add_used(words, word, end, block, num_nodes, best, steps, passed, used)
        word = end
    return total


@compiled_inner
def _best_ways(block: Block, size: tuple[int, int], scores: Any, best: Any, steps: Any) -> None:
    """Find the best way to every node, and its last step: (from, piece)."""
    num_nodes, num_edges = size
    edges = block.edges
    for node in range(num_nodes):
        best[node] = -np.inf
    best[0] = 0.0
    for number in range(num_edges):
        edge = Place(number)
        node, to, piece = edges[edge, FROM], Place(edges[edge, TO]), edges[edge, PIECE]
        total = best[Place(node)] + scores[Place(piece)]
        if total > best[to]:
            best[to] = total
            steps[to, Place(0)], steps[to, Place(1)] = node, piece


@compiled_inner
def _add_used(
    words: Words,
    first: int,
    last: int,
    block: Block,
    num_nodes: int,
    best: Any,
    steps: Any,
    passed: Any,
    used: Any,
) -> float:
    """Add the pieces on the best ways, every node's once for all words whose way passes it."""
    for node in range(num_nodes):
        passed[node] = 0
    total = 0.0
    for word in range(first, last):
        end = block.ends[word - first]
        passed[end] += words.counts[word]
        total += words.counts[word] * best[end]
    for node in range(num_nodes - 1, 0, -1):
        if passed[node] > 0:
            passed[steps[node, 0]] += passed[node]
            used[steps[node, 1]] += passed[node]
    return total


@compiled
def removal_losses(
    text: Any, starts: Any, lengths: Any, first: int, last: int, pieces: Scored, used: Any, out: Any
) -> None:
    """Find what the log-likelihood of the corpus loses when a piece is cut into others.

    Every use of the piece becomes the best segmentation of the piece without itself, whose pieces
    are then used so much more often; probabilities are shares of all uses. A piece without such a
    segmentation (a character) loses infinitely much; one that is worse than its segmentation, or
    that is not used, minus infinity.

    Args:
        text: what the pieces are slices of.
        starts: (n,) int64: where each piece starts in `text`.
        lengths: (n,) int64.
        first: the first piece looked at here.
        last: one past the last piece looked at here.
        pieces: all pieces.
        used: (n,) int64: how often each is used in the best segmentations.
        out: (n,) float64; receives the losses.
    """
    nodes, scores, _, _ = pieces
    longest = 1
    for piece in range(first, last):
        longest = max(longest, lengths[piece])
    best, steps = np.empty(longest + 1), np.empty((longest + 1, 2), np.int32)
    all_used = np.float64(used.sum())
    for piece in range(first, last):
        start, size = starts[piece], lengths[piece]
        if used[piece] == 0 and size > _char_len(text[start]):
            out[piece] = -np.inf
            continue
        _best_cut(text, start, start + size, nodes, scores, best, steps, size - 1)
        if steps[size, 0] == 0:
            out[piece] = np.inf
        elif best[size] >= scores[piece]:
            out[piece] = -np.inf
        else:
            out[piece] = _loss(size, steps, used, piece, all_used)


@compiled_inner
def _loss(size: int, steps: Any, used: Any, piece: int, all_used: float) -> float:
    freed = np.float64(used[piece])
    num_parts, at = 0, size
    while at > 0:
        num_parts += 1
        at -= steps[at, 0]
    log_all = np.log(all_used + freed * (num_parts - 1))
    alternative, at = 0.0, size
    while at > 0:
        alternative += np.log(used[steps[at, 1]] + freed) - log_all
        at -= steps[at, 0]
    return freed * (np.log(freed) - np.log(all_used) - alternative)


@compiled_inner
def _best_cut(
    text: Any,
    start: int,
    end: int,
    nodes: Any,
    scores: Any,
    best: Any,
    steps: Any,
    max_len: int,
) -> None:
    """Find the best way to every place in pieces of at most `max_len` bytes, and its last step."""
    size = end - start
    best[0] = 0.0
    for at in range(1, size + 1):
        steps[at, 0] = 0
    for at in range(size):
        if at > 0 and steps[at, 0] == 0:
            continue  # inside a character
        node, place, so_far = ROOT, at, best[at]
        stop = min(size, at + max_len)
        while place < stop:
            row = Place(nodes[node, BASE]) ^ Place(text[Place(start + place)])
            if Place(nodes[row, PARENT]) != node:
                break
            node = row
            place += 1
            piece = nodes[node, VALUE]
            if piece >= 0:
                to, total = Place(place), so_far + scores[Place(piece)]
                if steps[to, _LENGTH] == 0 or total > best[to]:
                    best[to] = total
                    steps[to, _LENGTH], steps[to, _LAST] = place - at, piece


@compiled_inner
def _char_len(lead: int) -> int:
    if lead < 0xC0:
        return 1
    if lead < 0xE0:
        return 2
    return 3 if lead < 0xF0 else 4
