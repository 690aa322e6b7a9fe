"""Error bars: a mean or a ratio of sums, its standard error and its bootstrap interval.

Every metric here is a ratio of two sums over examples: accuracy is correct answers over answers,
bits per byte is bits over bytes. Examples that hang together (questions about one module) are given
as clusters; they then count as one draw. Not here: comparing two models.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993 (percentile interval);
Miller, "Adding Error Bars to Evals", arXiv:2411.00640 (clustered standard errors).
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from llmlab.errors import EvalError

_RESAMPLES = 10_000
_COUNTS_AT_ONCE = 1 << 22  # int64 counts of one bunch of resamples: 32 MB


@dataclass(frozen=True)
class Estimate:
    """A number with its error bars; they are None for fewer than two independent examples."""

    value: float
    stderr: float | None
    """Standard error: of a mean, s / sqrt(n); of a ratio, linearised; clusters count as one."""
    low: float | None
    """2.5th percentile of the bootstrap."""
    high: float | None
    """97.5th percentile of the bootstrap."""
    num_examples: int


def estimate(
    numerators: Sequence[float] | np.ndarray,
    denominators: Sequence[float] | np.ndarray | None = None,
    *,
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
    num_resamples: int = _RESAMPLES,
) -> Estimate:
    """Estimate sum(numerators) / sum(denominators) with its error bars.

    Args:
        numerators: one number an example.
        denominators: one number an example, their sum above 0; all ones, so a mean, when None.
        clusters: what each example belongs to; each its own when None.
        seed: of the bootstrap.
        num_resamples: bootstrap samples.

    Raises:
        EvalError: there are no examples, or the denominators sum to nothing.
    """
    top = np.asarray(numerators, np.float64)
    bottom = np.ones_like(top) if denominators is None else np.asarray(denominators, np.float64)
    num_examples = len(top)
    if not num_examples or bottom.sum() <= 0:
        raise EvalError(f"nothing to average: {num_examples} scored examples")
    if clusters is not None:
        top, bottom = _cluster_sums(top, bottom, clusters)
    value = float(top.sum() / bottom.sum())
    if len(top) < 2:
        return Estimate(value, None, None, None, num_examples)
    low, high = np.percentile(_bootstrap(top, bottom, seed, num_resamples), [2.5, 97.5])
    return Estimate(value, _stderr(top, bottom), float(low), float(high), num_examples)


def _cluster_sums(
    top: np.ndarray, bottom: np.ndarray, clusters: Sequence[Hashable]
) -> tuple[np.ndarray, np.ndarray]:
    numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    index = np.array([numbers[cluster] for cluster in clusters])
    return np.bincount(index, top), np.bincount(index, bottom)


def _stderr(top: np.ndarray, bottom: np.ndarray) -> float:
    """Linearise the ratio: the residuals top - ratio * bottom are what varies."""
    n = len(top)
    residuals = top - top.sum() / bottom.sum() * bottom
    return float(np.sqrt(n / (n - 1) * np.square(residuals).sum()) / bottom.sum())


def _bootstrap(top: np.ndarray, bottom: np.ndarray, seed: int, num_resamples: int) -> np.ndarray:
    """Return the ratio in each resample: draw n examples with replacement, as counts."""
    rng = np.random.default_rng(seed)
    n = len(top)
    step = max(1, _COUNTS_AT_ONCE // n)
    ratios = []
    for start in range(0, num_resamples, step):
        size = min(step, num_resamples - start)
        counts = rng.multinomial(n, np.full(n, 1 / n), size=size)  # (size, n)
        below = counts @ bottom
        # A resample of examples that are all empty says nothing; it keeps the whole's value.
        whole = top.sum() / bottom.sum()
        ratios.append(np.divide(counts @ top, below, np.full(size, whole), where=below > 0))
    return np.concatenate(ratios)
