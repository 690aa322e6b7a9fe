"""What training a Unigram model counts: pieces over all segmentations, and over the best ones.

The expected count of a piece sums, over all ways to cut a word, the way's share of the word's
probability (forward-backward). Sums are of probabilities as such, each divided by a constant to
the power of its length so that they stay near 1; a word that leaves float64's range all the same
is done again in logarithms. Not here: threads and the M-step (../trainers/unigram.py).

Source: Kudo, arXiv:1804.10959, section 3.2.
"""

from typing import Any, NamedTuple

import numpy as np

from llmlab.tokenizers.compiled.jit import compiled, compiled_inner
from llmlab.tokenizers.compiled.trie import BASE, PARENT, ROOT, VALUE, Place

_SMALLEST, _LARGEST = 1e-120, 1e120
"""Forward sums within these leave room for the backward ones."""

_FROM, _TO, _PIECE = Place(0), Place(1), Place(2)  # columns of `edges`
_LENGTH, _LAST = Place(0), Place(1)  # columns of `steps`


class Words(NamedTuple):
    """Different words and how often each is there."""

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
    words: Words, first: int, last: int, pieces: Scored, max_edges: int, expected: Any
) -> Any:
    """Add the expected counts of the pieces in some words; return their log-likelihood.

    Args:
        words: all words.
        first: the first word counted here.
        last: one past the last word counted here.
        pieces: all pieces.
        max_edges: how many pieces can start at one place.
        expected: (n,) float64; receives the counts.
    """
    text, bounds, counts = words
    nodes, scores, scaled, byte_score = pieces
    longest = _longest(bounds, first, last)
    edges = np.empty((longest * max_edges, 3), np.int32)
    values = np.empty(longest * max_edges)
    forward, backward = np.empty(longest + 1), np.empty(longest + 1)
    total = 0.0
    for word in range(first, last):
        start, end = bounds[word, 0], bounds[word, 1]
        size, count = end - start, np.float64(counts[word])
        num_edges = _find_edges(text, start, end, nodes, edges)
        if _forward(text, start, size, edges, num_edges, scaled, values, forward):
            _backward(size, edges, num_edges, values, forward, backward, count, expected)
            log_sum = np.log(forward[size]) + size * byte_score
        else:
            log_sum = _in_logs(size, edges, num_edges, scores, forward, backward, count, expected)
        total += count * log_sum
    return total


@compiled_inner
def _find_edges(text: Any, start: int, end: int, nodes: Any, edges: Any) -> Any:
    """Note every piece at every place of a word, by where it starts; return how many there are."""
    count = Place(0)
    for at in range(start, end):
        if text[at] & 0xC0 == 0x80:
            continue  # inside a character
        node, place = ROOT, at
        while place < end:
            row = Place(nodes[node, BASE]) ^ Place(text[Place(place)])
            if Place(nodes[row, PARENT]) != node:
                break
            node = row
            place += 1
            piece = nodes[node, VALUE]
            if piece >= 0:
                edges[count, _FROM], edges[count, _TO] = at - start, place - start
                edges[count, _PIECE] = piece
                count += Place(1)
    return np.int64(count)


@compiled_inner
def _forward(
    text: Any,
    start: int,
    size: int,
    edges: Any,
    num_edges: int,
    scaled: Any,
    values: Any,
    forward: Any,
) -> bool:
    """Sum the ways to every place; return whether float64 could hold the sums."""
    for at in range(size + 1):
        forward[at] = 0.0
    forward[0] = 1.0
    for number in range(num_edges):
        edge = Place(number)
        value = scaled[Place(edges[edge, _PIECE])]
        values[edge] = value
        forward[Place(edges[edge, _TO])] += forward[Place(edges[edge, _FROM])] * value
    for at in range(1, size + 1):
        inside = at < size and text[start + at] & 0xC0 == 0x80
        if not inside and not _SMALLEST < forward[at] < _LARGEST:
            return False
    return True


@compiled_inner
def _backward(
    size: int,
    edges: Any,
    num_edges: int,
    values: Any,
    forward: Any,
    backward: Any,
    count: float,
    expected: Any,
) -> None:
    """Sum the ways from every place to the end, and add each piece's share."""
    for at in range(size):
        backward[at] = 0.0
    backward[size] = count / forward[size]
    for number in range(num_edges - 1, -1, -1):
        edge = Place(number)
        at = Place(edges[edge, _FROM])
        way = values[edge] * backward[Place(edges[edge, _TO])]
        backward[at] += way
        expected[Place(edges[edge, _PIECE])] += way * forward[at]


@compiled_inner
def _in_logs(
    size: int,
    edges: Any,
    num_edges: int,
    scores: Any,
    forward: Any,
    backward: Any,
    count: float,
    expected: Any,
) -> float:
    """Do both in logarithms; return the log-likelihood of the word."""
    for at in range(size + 1):
        forward[at] = backward[at] = -np.inf
    forward[0] = backward[size] = 0.0
    for edge in range(num_edges):
        at, to = edges[edge, _FROM], edges[edge, _TO]
        forward[to] = np.logaddexp(forward[to], forward[at] + scores[edges[edge, _PIECE]])
    for edge in range(num_edges - 1, -1, -1):
        at, to, piece = edges[edge, _FROM], edges[edge, _TO], edges[edge, _PIECE]
        way = scores[piece] + backward[to]
        backward[at] = np.logaddexp(backward[at], way)
        expected[piece] += count * np.exp(way + forward[at] - forward[size])
    return forward[size]


@compiled
def add_best(words: Words, first: int, last: int, pieces: Scored, used: Any) -> Any:
    """Add how often each piece is used when every word is cut in the best way.

    Args:
        words: all words.
        first: the first word counted here.
        last: one past the last word counted here.
        pieces: all pieces.
        used: (n,) int64; receives the counts.

    Returns:
        The log-probability of those segmentations.
    """
    text, bounds, counts = words
    nodes, scores, _, _ = pieces
    longest = _longest(bounds, first, last)
    best, steps = np.empty(longest + 1), np.empty((longest + 1, 2), np.int32)
    total = 0.0
    for word in range(first, last):
        start, end = bounds[word, 0], bounds[word, 1]
        _best_cut(text, start, end, nodes, scores, best, steps, end - start)
        total += counts[word] * best[end - start]
        at = end - start
        while at > 0:
            used[steps[at, 1]] += counts[word]
            at -= steps[at, 0]
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
def _longest(bounds: Any, first: int, last: int) -> int:
    longest = 0
    for word in range(first, last):
        longest = max(longest, bounds[word, 1] - bounds[word, 0])
    return longest


@compiled_inner
def _char_len(lead: int) -> int:
    if lead < 0xC0:
        return 1
    if lead < 0xE0:
        return 2
    return 3 if lead < 0xF0 else 4
