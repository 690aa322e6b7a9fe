"""The loss of a model as a function of its size and its data: L(N, D) = E + A/N^alpha + B/D^beta.

Fitted as in arXiv:2203.15556 (approach 3): least squares on log L with Huber's loss, from many
starting points, the best of them kept. Its weak spots are those that arXiv:2404.10102 found: the
fit must converge, and its uncertainty must be told. So each start is solved to the end with exact
derivatives, and the intervals come from a bootstrap of the residuals: the runs of a ladder are
chosen, not drawn, so a resample keeps their places and draws what lies between law and run.

Not here: training the ladder (sweep/), pictures of the law (sweep/scaling.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llmlab.errors import DataError, MissingExtraError

try:
    from scipy import stats
    from scipy.optimize import least_squares
except ImportError as error:
    raise MissingExtraError("scipy", "train-extras") from error

CONSTANTS = ("E", "A", "B", "alpha", "beta")

_HUBER = 1e-3
"""Where Huber's loss turns from squared to absolute, in log L; the value of arXiv:2203.15556."""

_EXPONENTS = (0.01, 3.0)
"""Range of alpha and beta; published fits of language models lie between 0.05 and 0.8."""

_CONFIDENCE = (2.5, 97.5)
"""Percentiles of an interval."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Measurement:
    """One trained model."""

    size: float
    """N, parameters; which of them count is the caller's choice."""

    tokens: float
    """D, tokens it was trained on."""

    loss: float
    """L, held-out loss in nats a token."""


@dataclass(frozen=True)
class ScalingLaw:
    """The five constants."""

    E: float
    """Loss that neither size nor data removes."""

    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, size: float, tokens: float) -> float:
        """Return the loss of a model of `size` parameters after `tokens` tokens."""
        return self.E + self.A * size**-self.alpha + self.B * tokens**-self.beta

    def tokens_for(self, loss: float, size: float) -> float | None:
        """Return the tokens after which a size has a loss; None where it never has."""
        left = loss - self.E - self.A * size**-self.alpha
        return (self.B / left) ** (1 / self.beta) if left > 0 else None

    def best_split(self, compute: float) -> tuple[float, float]:
        """Return the size and tokens of the lowest loss at 6·N·D = `compute` FLOPs."""
        ratio = self.alpha * self.A / (self.beta * self.B)
        size = (ratio * (compute / 6) ** self.beta) ** (1 / (self.alpha + self.beta))
        return size, compute / 6 / size


@dataclass(frozen=True)
class ScalingFit:
    """The law that fits best, and how sure that is."""

    law: ScalingLaw
    resampled: tuple[ScalingLaw, ...]
    """Laws fitted to resamples."""

    residuals: tuple[float, ...]
    """log of measured over fitted loss, in the order of the measurements, widened for how few
    there are beside five constants."""

    def interval(self, constant: str) -> tuple[float, float]:
        """Return the 95 % interval of one of `CONSTANTS`."""
        return _interval([getattr(law, constant) for law in self.resampled])

    def predict(self, size: float, tokens: float) -> tuple[float, float, float]:
        """Return (loss, low, high) of a run that is yet to be made.

        The 95 % interval holds what is not known about the law and what a single run scatters.
        """
        scatter = np.random.default_rng(0).choice(self.residuals, len(self.resampled))
        found = [
            law.loss(size, tokens) * math.exp(noise)
            for law, noise in zip(self.resampled, scatter, strict=True)
        ]
        return self.law.loss(size, tokens), *_interval(found)


def fit_scaling_law(
    runs: Sequence[Measurement], *, resamples: int = 400, seed: int = 0
) -> ScalingFit:
    """Fit the law to trained models.

    Args:
        runs: at least six, over at least three sizes and three numbers of tokens.
        resamples: fits of the bootstrap.
        seed: of the bootstrap.

    Raises:
        DataError: too few runs for five constants.
    """
    _check(runs)
    problem = _Problem(runs)
    fits = [problem.solve(problem.target, start) for start in problem.starts()]
    best, _ = min(fits, key=lambda fit: fit[1])
    fitted = problem.log_loss(best)
    residuals = problem.target - fitted
    residuals = (residuals - residuals.mean()) * _widening(len(runs))
    generator = np.random.default_rng(seed)
    laws = []
    for _ in range(resamples):
        target = fitted + generator.choice(residuals, len(runs))
        laws.append(problem.law(problem.solve(target, best)[0]))
    return ScalingFit(problem.law(best), tuple(laws), tuple(residuals.tolist()))


class _Problem:
    """The least squares problem in unknowns of similar size.

    They are log E, the logarithms of the other two terms at the middle of the runs, alpha and beta:
    A itself depends so strongly on alpha that the two could hardly be moved together.
    """

    def __init__(self, runs: Sequence[Measurement]) -> None:
        sizes = np.log([run.size for run in runs])  # (R,)
        tokens = np.log([run.tokens for run in runs])  # (R,)
        self._middle = sizes.mean(), tokens.mean()
        self._n, self._d = sizes - self._middle[0], tokens - self._middle[1]
        self.target: Array = np.log([run.loss for run in runs])  # (R,)

    def starts(self) -> list[Array]:
        """Return starting points: how the lowest loss may be shared out, and how steeply.

        Each is the end of a fit by plain least squares, from where Huber's loss is a short way.
        """
        lowest = math.exp(self.target.min())
        rough = [
            np.array([math.log(lowest * share), *[math.log(lowest * (1 - share) / 2)] * 2, a, b])
            for share in (0.1, 0.5, 0.9)
            for a in (0.15, 0.4, 1.0)
            for b in (0.15, 0.4, 1.0)
        ]
        return [self.solve(self.target, start, loss="linear")[0] for start in rough]

    def solve(
        self, target: Array, start: Array, *, loss: Literal["huber", "linear"] = "huber"
    ) -> tuple[Array, float]:
        """Return the unknowns at the minimum next to `start`, and the cost there."""
        low, high = _EXPONENTS
        found = least_squares(
            lambda unknowns: self.log_loss(unknowns) - target,
            start,
            jac=self._slopes,  # pyrefly: ignore[bad-argument-type]
            bounds=([-30, -30, -30, low, low], [5, 5, 5, high, high]),
            loss=loss,
            f_scale=_HUBER,
            xtol=1e-10,
            ftol=1e-10,
            gtol=1e-10,
            max_nfev=500,
        )
        return found.x, float(found.cost)

    def log_loss(self, unknowns: Array) -> Array:
        """Return log L of each run."""
        return np.log(sum(self._terms(unknowns)))

    def law(self, unknowns: Array) -> ScalingLaw:
        """Return the constants in their usual meaning."""
        log_e, log_a, log_b, alpha, beta = unknowns.tolist()
        middle_n, middle_d = self._middle
        return ScalingLaw(
            E=math.exp(log_e),
            A=math.exp(log_a + alpha * middle_n),
            B=math.exp(log_b + beta * middle_d),
            alpha=alpha,
            beta=beta,
        )

    def _terms(self, unknowns: Array) -> tuple[Array, Array, Array]:
        log_e, log_a, log_b, alpha, beta = unknowns
        return (
            np.full_like(self._n, math.exp(log_e)),
            np.exp(log_a - alpha * self._n),
            np.exp(log_b - beta * self._d),
        )

    def _slopes(self, unknowns: Array) -> Array:
        e, a, b = self._terms(unknowns)
        total = e + a + b
        return np.stack([e, a, b, -a * self._n, -b * self._d], axis=1) / total[:, None]  # (R, 5)


def _check(runs: Sequence[Measurement]) -> None:
    sizes, tokens = {run.size for run in runs}, {run.tokens for run in runs}
    if len(runs) <= len(CONSTANTS) or len(sizes) < 3 or len(tokens) < 3:
        raise DataError(
            f"{len(runs)} finished runs of {len(sizes)} sizes and {len(tokens)} numbers of tokens "
            "cannot fix five constants; train at least 6 runs over 3 sizes and 3 numbers of tokens"
        )


def _widening(num_runs: int) -> float:
    """Return by how much residuals are too small to be resampled as they are.

    The fit has used up some of their freedom, and how far they scatter is known from few: Student's
    quantile over the normal one.
    """
    left = num_runs - len(CONSTANTS)
    upper = _CONFIDENCE[1] / 100
    return math.sqrt(num_runs / left) * float(stats.t.ppf(upper, left) / stats.norm.ppf(upper))


def _interval(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.percentile(values, _CONFIDENCE)
    return float(low), float(high)
