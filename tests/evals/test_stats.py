"""Error bars: against scipy, by hand, and their coverage."""

import numpy as np
import pytest
from scipy import stats

from llmlab.errors import EvalError
from llmlab.evals.stats import estimate


def test_the_mean_and_its_standard_error_are_numpys() -> None:
    values = np.random.default_rng(0).normal(size=50)
    got = estimate(values)
    assert got.value == pytest.approx(values.mean())
    assert got.stderr == pytest.approx(values.std(ddof=1) / np.sqrt(50))
    assert got.num_examples == 50


def test_the_interval_is_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(1).exponential(size=80)
    got = estimate(values, seed=0)
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(5)
    ).confidence_interval
    # Percentiles of 10,000 resamples vary by about 2% of the standard error, 0.11 here.
    assert got.low == pytest.approx(expected.low, abs=0.01)
    assert got.high == pytest.approx(expected.high, abs=0.01)


def test_a_ratio_is_that_of_the_sums() -> None:
    bits, sizes = [8.0, 1.0, 3.0], [4.0, 1.0, 1.0]
    got = estimate(bits, sizes)
    assert got.value == 2.0
    residuals = np.array([0.0, -1.0, 1.0])
    assert got.stderr == pytest.approx(np.sqrt(3 / 2 * (residuals**2).sum()) / 6)


def test_examples_of_one_cluster_count_as_one_draw() -> None:
    """Ten copies of each example carry no more information than one."""
    values = np.random.default_rng(2).normal(size=30)
    once = estimate(values)
    copied = estimate(np.repeat(values, 10), clusters=np.repeat(np.arange(30), 10).tolist())
    assert copied.value == pytest.approx(once.value)
    assert copied.stderr == pytest.approx(once.stderr)
    assert copied.num_examples == 300
    naive = estimate(np.repeat(values, 10))
    assert naive.stderr is not None
    assert once.stderr is not None
    assert naive.stderr < once.stderr / 2


def test_a_seed_gives_the_same_interval_again() -> None:
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    assert estimate(values, seed=3) == estimate(values, seed=3)
    assert estimate(values, seed=3) != estimate([*values, 1.0], seed=3)


def test_one_example_has_no_error_bars_and_none_is_an_error() -> None:
    single = estimate([0.5])
    assert (single.stderr, single.low, single.high) == (None, None, None)
    assert estimate([1.0, 0.0], clusters=["a", "a"]).low is None
    with pytest.raises(EvalError, match="0 scored examples"):
        estimate([])
    with pytest.raises(EvalError, match="nothing to average"):
        estimate([1.0], [0.0])


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(4)
    covered = 0
    for trial in range(300):
        got = estimate(rng.binomial(1, 0.6, size=60), seed=trial, num_resamples=500)
        assert got.low is not None
        assert got.high is not None
        covered += got.low <= 0.6 <= got.high
    # Nominal 95%; the percentile interval of 60 coin flips covers about 94%, and 300 trials
    # have a standard error of 1.3%.
    assert 0.90 <= covered / 300 <= 0.985
