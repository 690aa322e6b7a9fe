"""The distinct words as one array of tokens, their pairs counted and placed.

There is a gap before, between and behind the words. A token that spans several places is written
at its first and its last place; what lies between is never looked at. So the token before place p
is `tokens[p - 1]`, the one behind is `tokens[p + length]`, and merging writes a few places and
moves nothing. Not here: merging (learning.py).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmlab.errors import DataError
from llmlab.tokenizers.compiled.jit import compiled_inner
from llmlab.tokenizers.compiled.pairs import (
    MISSING,
    PairHeap,
    PairTable,
    find,
    find_or_add,
    has_room,
    new_table,
    pair_key,
    rebuilt,
)

GAP = -1
"""What stands between words."""

_MAX_PLACES = 2**31 - 1


class Corpus(NamedTuple):
    """The distinct words, as they are merged so far."""

    tokens: NDArray[np.int32]
    word_of: NDArray[np.int32]
    """The number of the word at each place."""

    counts: NDArray[np.int64]
    """How often each word was seen."""

    lengths: NDArray[np.int32]
    """Symbols in each token."""


class Places(NamedTuple):
    """Where pairs occur: `starts` holds a stretch for each pair, ascending."""

    starts: NDArray[np.int32]
    end: NDArray[np.int64]
    """One number: how much is in use."""


def lay_out(
    symbols: NDArray[np.int32],
    starts: NDArray[np.int64],
    counts: NDArray[np.int64],
    *,
    num_symbols: int,
    num_merges: int,
) -> Corpus:
    """Return the words, each token one symbol long.

    Args:
        symbols: all words in a row, numbers below `num_symbols`.
        starts: where each word begins in `symbols`, and the end: W + 1 numbers.
        counts: how often each of the W words was seen.
        num_symbols: how many different symbols there may be.
        num_merges: how many tokens may be added to them.

    Raises:
        DataError: the words have more than 2^31 symbols.
    """
    num_places = len(symbols) + len(starts)
    if num_places > _MAX_PLACES:
        raise DataError(
            f"the distinct words have {len(symbols)} bytes or characters, more than the "
            f"{_MAX_PLACES} that can be merged; give less text, or text with shorter words"
        )
    tokens = np.full(num_places, GAP, np.int32)
    word_of = np.zeros(num_places, np.int32)
    _fill_words(symbols, _frozen(starts), tokens, word_of)
    lengths = np.zeros(num_symbols + num_merges, np.int32)
    lengths[:num_symbols] = 1
    return Corpus(tokens, word_of, _frozen(counts), lengths)


def _frozen(array: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a read-only view: compiled code is compiled once for these, once for others."""
    view = array.view()
    view.flags.writeable = False
    return view


def count_pairs(corpus: Corpus, min_frequency: int) -> tuple[PairTable, PairHeap, Places]:
    """Count the pairs of neighbouring symbols and list the places of the frequent ones."""
    table, at = new_table(0), 1
    while (at := _count_from(corpus, table, at)) < len(corpus.tokens):
        table, _ = rebuilt(table, min_total=1, more=1)
    table, heap = rebuilt(table, min_total=min_frequency, more=1)
    # Each symbol but the first of a word ends one pair; each merge at one place makes two pairs
    # and takes away a token. Memory that is never written costs nothing.
    places = Places(np.empty(3 * len(corpus.tokens), np.int32), np.zeros(1, np.int64))
    _list_places(corpus, table, places)
    return table, heap, places


@compiled_inner
def _fill_words(
    symbols: NDArray[np.int32],
    starts: NDArray[np.int64],
    tokens: NDArray[np.int32],
    word_of: NDArray[np.int32],
) -> None:
    for word in range(len(starts) - 1):
        shift = word + 1  # one gap before every word
        for at in range(starts[word], starts[word + 1]):
            tokens[at + shift] = symbols[at]
            word_of[at + shift] = word


@compiled_inner
def _count_from(corpus: Corpus, table: PairTable, start: int) -> int:
    """Count from place `start` on; return where the table was full, or the number of places."""
    tokens = corpus.tokens
    for at in range(start, len(tokens) - 1):
        if tokens[at] != GAP and tokens[at + 1] != GAP:
            if not has_room(table, 1):
                return at
            slot = find_or_add(table, pair_key(np.int64(tokens[at]), np.int64(tokens[at + 1])))
            table.totals[slot] += corpus.counts[corpus.word_of[at]]
            table.nums[slot] += 1
    return len(tokens)


@compiled_inner
def _list_places(corpus: Corpus, table: PairTable, places: Places) -> None:
    tokens = corpus.tokens
    for slot in range(len(table.keys)):
        table.firsts[slot] = places.end[0]
        places.end[0] += table.nums[slot]
        table.nums[slot] = 0
    for at in range(1, len(tokens) - 1):
        if tokens[at] != GAP and tokens[at + 1] != GAP:
            slot = find(table, pair_key(np.int64(tokens[at]), np.int64(tokens[at + 1])))
            if slot != MISSING:
                places.starts[table.firsts[slot] + table.nums[slot]] = at
                table.nums[slot] += 1
