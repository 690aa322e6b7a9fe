"""Unigram in bulk: Viterbi's recursion over bytes.

A lattice has an edge for every piece at every place of a text; the best way through it is found
from left to right, in the float type of the scores and with SentencePiece's order of ties, so the
ids are its ids (models/unigram.py is the specification). Not here: threads (../bulk_unigram.py),
sums over all ways (expectation.py).

Source: Kudo, arXiv:1804.10959.
"""

from typing import Any, NamedTuple

import numpy as np

from llmlab.tokenizers.compiled.jit import compiled, compiled_inner
from llmlab.tokenizers.compiled.trie import BASE, PARENT, ROOT, VALUE, Place

NO_PIECE = -1

_LENGTH, _TOKEN = Place(0), Place(1)  # columns of `steps`


class Tables(NamedTuple):
    """What decides the ids of a text."""

    nodes: Any
    """(rows, 4) int32: the trie of the pieces."""

    ids: Any
    """(n,) int32: the id of each piece of the trie."""

    scores: Any
    """(n,) float32 or float64: what each piece adds; the type is that of the sums."""

    unknown_score: Any
    """What a character without a piece adds, of the same type."""

    limit: Any
    """A sum past it starts again from zero, of the same type."""

    unk_id: int
    """What a run of unknown characters becomes."""

    byte_ids: Any
    """(256,) int32: what the bytes of unknown characters become; empty without byte fallback."""

    cuts_at_marks: bool
    """Whether a piece never reaches over the start of a U+2581; else a text is cut as a whole."""


@compiled
def encode_texts(data: Any, bounds: Any, tables: Tables, out: Any, ends: Any) -> Any:
    """Encode texts that lie one after another and return the number of ids.

    Args:
        data: (bytes,) uint8, read-only: valid UTF-8.
        bounds: (num_texts + 1,) int64; text i is `data[bounds[i] : bounds[i + 1]]`.
        tables: what decides the ids.
        out: uint32, as long as the texts have bytes; receives the ids.
        ends: (num_texts,) int64; receives where each text's ids end in `out`.
    """
    longest = 0
    for text in range(ends.size):
        longest = max(longest, bounds[text + 1] - bounds[text])
    best = np.empty(longest + 1, tables.scores.dtype)
    steps = np.empty((longest + 1, 2), np.int32)  # (length of the last piece, its id)
    nodes, ids, scores, unknown_score, limit, unk_id, byte_ids, cuts_at_marks = tables
    count = 0
    for text in range(ends.size):
        start, stop = bounds[text], bounds[text + 1]
        while start < stop:
            end = _next_mark(data, start, stop) if cuts_at_marks else stop
            _best_path(data, start, end, nodes, ids, scores, unknown_score, limit, best, steps)
            count = _write_path(data, start, end, steps, unk_id, byte_ids, out, count)
            start = end
        ends[text] = count
    return count


@compiled_inner
def _next_mark(data: Any, start: int, stop: int) -> int:
    """Return where the next U+2581 after the first character starts, or the end."""
    for at in range(start + 1, stop - 2):
        if data[at] == 0xE2 and data[at + 1] == 0x96 and data[at + 2] == 0x81:
            return at
    return stop


@compiled_inner
def _best_path(
    data: Any,
    start: int,
    end: int,
    nodes: Any,
    ids: Any,
    scores: Any,
    unknown_score: Any,
    limit: Any,
    best: Any,
    steps: Any,
) -> None:
    """Find for every place of a text the best way to it and its last step."""
    size = end - start
    best[0] = 0
    for at in range(1, size + 1):
        steps[at, 0] = 0
    at = reach = 0  # no way leads further yet
    while at < size:
        if abs(best[at]) > limit:
            _restart(best, steps, at, reach)
        so_far = best[at]
        width = min(_width(data[start + at]), size - at)
        node, place, has_single = ROOT, at, False
        while place < size:
            row = Place(nodes[node, BASE]) ^ Place(data[Place(start + place)])
            if Place(nodes[row, PARENT]) != node:
                break
            node = row
            place += 1
            piece = nodes[node, VALUE]
            if piece >= 0:
                token = ids[Place(piece)]
                _step(best, steps, at, Place(place), so_far + scores[Place(piece)], token)
                has_single |= place - at == width
                reach = max(reach, place)
        if not has_single:
            reach = max(reach, at + width)
            _step(best, steps, at, Place(at + width), so_far + unknown_score, NO_PIECE)
        at += width


@compiled_inner
def _step(best: Any, steps: Any, at: int, to: np.uint64, total: Any, token: int) -> None:
    """Note a way that is better than those before; of equals the first stays."""
    if steps[to, _LENGTH] == 0 or total > best[to]:
        best[to] = total
        steps[to, _LENGTH], steps[to, _TOKEN] = np.int64(to) - at, token


@compiled_inner
def _restart(best: Any, steps: Any, at: int, reach: int) -> None:
    """Count the sums from here on from zero."""
    offset = best[at]
    for place in range(at, reach + 1):
        if place == at or steps[place, 0] > 0:
            best[place] -= offset


@compiled_inner
def _write_path(
    data: Any, start: int, end: int, steps: Any, unk_id: int, byte_ids: Any, out: Any, count: int
) -> int:
    """Write the ids of a text behind the first `count` and return how many there are then."""
    at = end - start
    first = last = count + at  # ids are known from the end: they are written backwards, then moved
    in_run = False
    while at > 0:
        length, token = steps[at, 0], steps[at, 1]
        if token != NO_PIECE:
            first -= 1
            out[first] = token
        elif byte_ids.size:
            for place in range(start + at - 1, start + at - length - 1, -1):
                first -= 1
                out[first] = byte_ids[data[place]]
        elif not in_run:
            first -= 1
            out[first] = unk_id
        in_run = token == NO_PIECE
        at -= length
    for place in range(first, last):
        out[count + place - first] = out[place]
    return count + last - first


@compiled_inner
def _width(lead: int) -> int:
    """Return the bytes of a character by its first one."""
    if lead < 0xC0:
        return 1
    if lead < 0xE0:
        return 2
    return 3 if lead < 0xF0 else 4
