"""The loop that learns merges from distinct words and their counts.

One merge visits the places of its pair and nothing else; a place whose tokens were merged away
meanwhile is recognised by what stands there. The pairs a merge makes all hold the new token, so
they are gathered by neighbour: one table entry a neighbour, and each list of places has its final
length at once. Pairs too rare to be merged ever are not kept, since counts only sink.

All counts are 64 bits wide. n symbols in W distinct words take at most 20(n + W) bytes, and about
100 bytes for each pair kept; nothing grows with the text. Not here: what symbols stand for
(trainers/), the words (corpus.py). Source: Sennrich et al., arXiv:1508.07909.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmlab.tokenizers.compiled.corpus import GAP, Corpus, Places, count_pairs, lay_out
from llmlab.tokenizers.compiled.jit import compiled_inner
from llmlab.tokenizers.compiled.pairs import (
    MISSING,
    PairHeap,
    PairTable,
    best_pair,
    find,
    find_or_add,
    has_room,
    pair_key,
    push,
    rebuilt,
)

_INSIDE = -2
_LOW_HALF = 2**32 - 1
_MERGES_PER_CALL = 512


class _Neighbours(NamedTuple):
    """What stood on one side of the places of one merge."""

    tokens: NDArray[np.int32]
    """The different neighbours; `num[0]` of them."""

    num: NDArray[np.int64]
    totals: NDArray[np.int64]
    """By neighbour: how often, counted in words of the text."""

    nums: NDArray[np.int64]
    """By neighbour: at how many places."""

    ends: NDArray[np.int64]
    """By neighbour: where its next place goes; negative when the pair is not kept."""


class _Merged(NamedTuple):
    """The places one merge changed, with the neighbours there."""

    starts: NDArray[np.int32]
    before: NDArray[np.int32]
    after: NDArray[np.int32]


class _Reserved(NamedTuple):
    """Symbol sequences that no merge may make."""

    symbols: NDArray[np.int32]
    starts: NDArray[np.int64]
    spelling: NDArray[np.int32]
    """Room to spell out one token."""


class _State(NamedTuple):
    corpus: Corpus
    table: PairTable
    heap: PairHeap
    places: Places
    left: _Neighbours
    right: _Neighbours
    merged: _Merged
    reserved: _Reserved
    merges: NDArray[np.int64]
    """The pairs of the tokens made, (M, 2)."""


def learn_pairs(
    symbols: NDArray[np.int32],
    starts: NDArray[np.int64],
    counts: NDArray[np.int64],
    *,
    num_symbols: int,
    num_merges: int,
    min_frequency: int,
    reserved: Sequence[Sequence[int]] = (),
) -> Iterator[NDArray[np.int64]]:
    """Learn merges, best first: the most frequent pair, of equals the one with the smallest ids.

    Args:
        symbols: all words in a row, numbers below `num_symbols`.
        starts: where each word begins in `symbols`, and the end: W + 1 numbers.
        counts: how often each of the W words was seen; their sum is below 2^63.
        num_symbols: the first merge makes the token of this number, the next one the next.
        num_merges: merges wanted; fewer come when pairs run out.
        min_frequency: a rarer pair is not merged; 0 means 1.
        reserved: symbol sequences that no token may stand for.

    Yields:
        After every few hundred merges, those: pairs of token numbers (M, 2).

    Raises:
        DataError: the distinct words have more than 2^31 symbols.
    """
    corpus = lay_out(symbols, starts, counts, num_symbols=num_symbols, num_merges=num_merges)
    del symbols  # 4n bytes that the loop has no use for
    min_total = max(min_frequency, 1)
    state = _initial(corpus, num_merges, min_total, reserved)
    done, exhausted = 0, False
    while done < num_merges and not exhausted:
        goal = min(done + _MERGES_PER_CALL, num_merges)
        now, needed = _learn(state, done, goal, min_total)
        if needed > 0:
            table, heap = rebuilt(state.table, min_total=min_total, more=needed)
            state = state._replace(table=table, heap=heap)
        exhausted = now < goal and needed == 0
        if now > done:
            yield state.merges[done:now]
        done = now


def _initial(
    corpus: Corpus, num_merges: int, min_total: int, reserved: Sequence[Sequence[int]]
) -> _State:
    table, heap, places = count_pairs(corpus, min_total)
    most = int(table.nums.max())
    return _State(
        corpus=corpus,
        table=table,
        heap=heap,
        places=places,
        left=_neighbours(len(corpus.lengths)),
        right=_neighbours(len(corpus.lengths)),
        merged=_Merged(*(np.empty(most, np.int32) for _ in range(3))),
        reserved=_as_reserved(reserved),
        merges=np.zeros((num_merges, 2), np.int64),
    )


def _neighbours(num_tokens: int) -> _Neighbours:
    return _Neighbours(
        tokens=np.empty(num_tokens, np.int32),
        num=np.zeros(1, np.int64),
        totals=np.zeros(num_tokens, np.int64),
        nums=np.zeros(num_tokens, np.int64),
        ends=np.zeros(num_tokens, np.int64),
    )


def _as_reserved(sequences: Sequence[Sequence[int]]) -> _Reserved:
    lengths = [len(sequence) for sequence in sequences]
    flat = [symbol for sequence in sequences for symbol in sequence]
    return _Reserved(
        symbols=np.array(flat, np.int32),
        starts=np.cumsum([0, *lengths]).astype(np.int64),
        spelling=np.zeros(max(lengths, default=0), np.int32),
    )


@compiled_inner
def _learn(state: _State, done: int, goal: int, min_total: int) -> tuple[int, int]:
    """Do merges `done` to `goal`; return how far it came and how much room it lacked, or 0."""
    table, merges, lengths = state.table, state.merges, state.corpus.lengths
    num_symbols = len(lengths) - len(merges)
    while done < goal:
        slot = best_pair(table, state.heap, min_total)
        if slot == MISSING:
            break
        token = num_symbols + done
        most = 2 * min(table.nums[slot], token) + 1
        if not has_room(table, most):
            return done, most
        merges[done, 0] = table.keys[slot] >> 32
        merges[done, 1] = table.keys[slot] & _LOW_HALF
        lengths[token] = lengths[merges[done, 0]] + lengths[merges[done, 1]]
        if _is_reserved(state.reserved, token, lengths, merges):
            table.totals[slot] = 0  # never offered again
            continue
        _merge(state, slot, token, min_total)
        done += 1
    return done, 0


@compiled_inner
def _is_reserved(
    reserved: _Reserved, token: int, lengths: NDArray[np.int32], merges: NDArray[np.int64]
) -> bool:
    length = lengths[token]
    for which in range(len(reserved.starts) - 1):
        start = reserved.starts[which]
        if reserved.starts[which + 1] - start == length:
            _spell(reserved.spelling, token, lengths, merges)
            same = 0
            while same < length and reserved.spelling[same] == reserved.symbols[start + same]:
                same += 1
            if same == length:
                return True
    return False


@compiled_inner
def _spell(
    out: NDArray[np.int32], token: int, lengths: NDArray[np.int32], merges: NDArray[np.int64]
) -> None:
    """Write the symbols of a token: each token in turn gives way to its two halves."""
    num_symbols = len(lengths) - len(merges)
    out[0] = token
    at = 0
    while at < lengths[token]:
        if out[at] < num_symbols:
            at += 1
        else:
            half = out[at] - num_symbols
            out[at + lengths[merges[half, 0]]] = merges[half, 1]
            out[at] = merges[half, 0]


@compiled_inner
def _merge(state: _State, slot: int, token: int, min_total: int) -> None:
    """Replace a pair by its token everywhere, and bring counts and places up to date."""
    table, heap, places = state.table, state.heap, state.places
    left, right = state.left, state.right
    first, second = table.keys[slot] >> 32, table.keys[slot] & _LOW_HALF
    num, between = _join(state, slot, token)
    table.totals[slot] = 0
    _lower(table, pair_key(second, first), between)
    for i in range(left.num[0]):
        near = np.int64(left.tokens[i])
        _lower(table, pair_key(near, first), left.totals[near])
        _add(table, heap, places, left, near, pair_key(near, token), min_total)
    for i in range(right.num[0]):
        near = np.int64(right.tokens[i])
        if near != token:  # what is between two new tokens is lowered above
            _lower(table, pair_key(second, near), right.totals[near])
        _add(table, heap, places, right, near, pair_key(token, near), min_total)
    _place(state, num)
    _forget(left)
    _forget(right)


@compiled_inner
def _join(state: _State, slot: int, token: int) -> tuple[int, int]:
    """Write the new token at the places of a pair; return how many, and between new ones."""
    corpus, table, right, merged = state.corpus, state.table, state.right, state.merged
    tokens, lengths = corpus.tokens, corpus.lengths
    first, second = table.keys[slot] >> 32, table.keys[slot] & _LOW_HALF
    length, first_length = lengths[token], lengths[first]
    num, between = 0, 0
    for i in range(table.firsts[slot], table.firsts[slot] + table.nums[slot]):
        at = np.int64(state.places.starts[i])
        if tokens[at] != first or tokens[at + first_length] != second:
            continue  # merged away meanwhile
        count = corpus.counts[corpus.word_of[at]]
        before, after = np.int64(tokens[at - 1]), np.int64(tokens[at + length])
        tokens[at] = token
        tokens[at + first_length] = _INSIDE
        tokens[at + length - 1] = token
        if before == token:  # the place before this one: its neighbour is no longer `first`
            right.totals[first] -= count
            right.nums[first] -= 1
            between += count
            merged.after[num - 1] = token
            _meet(right, token, count)
        elif before != GAP:
            _meet(state.left, before, count)
        if after != GAP:
            _meet(right, after, count)
        merged.starts[num] = at
        merged.before[num] = GAP if before == token else before
        merged.after[num] = after
        num += 1
    return num, between


@compiled_inner
def _meet(side: _Neighbours, near: int, count: int) -> None:
    if side.ends[near] == 0:
        side.ends[near] = 1
        side.tokens[side.num[0]] = near
        side.num[0] += 1
    side.totals[near] += count
    side.nums[near] += 1


@compiled_inner
def _lower(table: PairTable, key: int, total: int) -> None:
    slot = find(table, key)
    if slot != MISSING:
        table.totals[slot] -= total


@compiled_inner
def _add(
    table: PairTable,
    heap: PairHeap,
    places: Places,
    side: _Neighbours,
    near: int,
    key: int,
    min_total: int,
) -> None:
    """Enter a new pair and set aside room for its places, unless it is too rare."""
    total, num = side.totals[near], side.nums[near]
    if total < min_total:
        side.ends[near] = -1
        return
    slot = find_or_add(table, key)
    table.totals[slot] = total
    table.firsts[slot] = places.end[0]
    table.nums[slot] = num
    side.ends[near] = places.end[0]
    places.end[0] += num
    push(heap, total, key)


@compiled_inner
def _place(state: _State, num: int) -> None:
    """List the places of the new pairs."""
    corpus, places, merged = state.corpus, state.places, state.merged
    left, right = state.left, state.right
    for i in range(num):
        before, after = merged.before[i], merged.after[i]
        if before != GAP and left.ends[before] >= 0:
            places.starts[left.ends[before]] = merged.starts[i] - corpus.lengths[before]
            left.ends[before] += 1
        if after != GAP and right.ends[after] >= 0:
            places.starts[right.ends[after]] = merged.starts[i]
            right.ends[after] += 1


@compiled_inner
def _forget(side: _Neighbours) -> None:
    for i in range(side.num[0]):
        near = side.tokens[i]
        side.totals[near] = side.nums[near] = side.ends[near] = 0
    side.num[0] = 0
