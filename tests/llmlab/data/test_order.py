"""The parts of the order: permutations, turns of sources, places of documents."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from llmlab.data import best_fit
from llmlab.data.best_fit import plan_best_fit
from llmlab.data.mixture import Mixture
from llmlab.data.permutation import Permutation
from llmlab.errors import ConfigError


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**32), st.integers(0, 100))
def test_a_permutation_is_one_to_one(size: int, seed: int, epoch: int):
    shuffled = Permutation(size, seed, epoch)(np.arange(size))
    assert np.array_equal(np.sort(shuffled), np.arange(size))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_order_is_equally_likely(size: int):
    orders, seeds = math.factorial(size), 1200
    counts = Counter(tuple(Permutation(size, s)(np.arange(size))) for s in range(seeds))
    assert len(counts) == orders
    expected = seeds / orders
    statistic = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi2.sf(statistic, orders - 1) > 1e-3  # fixed seeds: never by bad luck


def test_a_large_permutation_keeps_nothing_of_the_order():
    size = 2**37 + 12345  # far more than fits into memory
    places = np.arange(100_000)
    shuffled = Permutation(size, 1, 2)(places)
    assert len(np.unique(shuffled)) == len(places)
    counts = np.histogram(shuffled, bins=64, range=(0, size))[0]
    assert chi2.sf(((counts - counts.mean()) ** 2 / counts.mean()).sum(), 63) > 1e-3
    # a correlation of independent numbers is 0 +- 1 / sqrt(100,000) = 0.003
    assert abs(np.corrcoef(shuffled[:-1], shuffled[1:])[0, 1]) < 0.015
    assert abs(np.corrcoef(places, shuffled)[0, 1]) < 0.015


def test_permutations_do_not_change_between_versions():
    """Resuming on another machine depends on it."""
    assert Permutation(10, 0, 0)(np.arange(10)).tolist() == [0, 5, 4, 2, 7, 3, 1, 6, 9, 8]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([0.01, 0.1, 0.3, 1, 2.5, 7, 1000]), min_size=1, max_size=7))
def test_every_prefix_is_within_one_sample_of_the_weights(weights: list[float]):
    mixture = Mixture(weights)
    assert sum(mixture.shares) == pytest.approx(1)
    for count in range(1, 400):
        source, index = mixture.next()
        assert index == mixture.taken[source] - 1
        assert sum(mixture.taken) == count
        for taken, share in zip(mixture.taken, mixture.shares, strict=True):
            assert abs(taken - share * count) < 1


def test_turns_go_on_from_any_place():
    whole, again = Mixture((0.5, 0.3, 0.2)), Mixture((5, 3, 2))
    turns = [whole.next() for _ in range(100)]
    assert Counter(source for source, _ in turns) == {0: 50, 1: 30, 2: 20}
    again.taken = [
        max((i + 1 for s, i in turns[:37] if s == source), default=0) for source in range(3)
    ]
    assert [again.next() for _ in range(63)] == turns[37:]


@pytest.mark.parametrize("weight", [0, -1, math.nan, math.inf])
def test_unusable_weights(weight: float):
    with pytest.raises(ConfigError, match=r"must all be above 0"):
        Mixture([1, weight])


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=80), st.integers(1, 25), st.integers(1, 40)
)
def test_best_fit_places_every_token_once(lens: list[int], context_len: int, buffer: int):
    original, best_fit._BUFFER_PIECES = best_fit._BUFFER_PIECES, buffer
    try:
        starts = np.cumsum([0, *lens[:-1]])
        plan = plan_best_fit(starts, sum(lens), context_len)
    finally:
        best_fit._BUFFER_PIECES = original
    windows = [plan.pieces(window) for window in range(plan.num_windows)]
    used = [sum(length for _, length in pieces) for pieces in windows]
    assert all(0 < count <= context_len for count in used)
    placed = sorted(piece for pieces in windows for piece in pieces)
    ranges = [token for start, length in placed for token in range(start, start + length)]
    assert ranges == list(range(sum(lens)))  # every token exactly once
    whole = {(start, length) for start, length in zip(starts.tolist(), lens, strict=True)
             if length <= context_len}  # fmt: skip
    assert whole <= set(placed)  # only what is longer than a window is cut
    assert plan.num_cut == len(lens) - len(whole)
    assert plan.padding == pytest.approx(1 - sum(lens) / (plan.num_windows * context_len))
    if buffer >= len(placed):  # no two windows fit into one: each new one was needed
        emptiest = sorted(used)[:2]
        assert len(emptiest) < 2 or sum(emptiest) > context_len


def test_best_fit_pads_little_on_real_lengths():
    lens = np.random.default_rng(0).lognormal(5.5, 1.0, 20_000).astype(np.int64) + 1
    plan = plan_best_fit(np.cumsum(lens) - lens, int(lens.sum()), 1024)
    assert plan.padding < 0.002
    assert plan.num_cut == (lens > 1024).sum()
