"""A ladder of runs as a scaling law: its tables, its charts, and the prediction put to the test."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from llmlab.page import Chart, Line, Table, line_chart
from llmlab.page.axes import short
from llmlab.pretrain.report.record import RunRecord
from llmlab.pretrain.scaling_law import CONSTANTS, Measurement, ScalingFit, fit_scaling_law

_SIZES = {"non_embedding": "num_non_embedding", "total": "num_parameters"}
_NAMES = {
    "non_embedding": "parameters without the tables of tokens",
    "total": "all parameters",
}


class Ladder:
    """Finished runs, the law fitted to them, and the runs kept out of the fit.

    Args:
        runs: what the law is fitted to; those without a held-out loss are left out.
        held_out: runs to predict.
        size: what counts as N, `non_embedding` or `total`.
        seed: of the bootstrap.
        resamples: fits of the bootstrap.

    Raises:
        DataError: too few finished runs.
    """

    def __init__(
        self,
        runs: Sequence[RunRecord],
        held_out: Sequence[RunRecord],
        *,
        size: str,
        seed: int,
        resamples: int = 400,
    ) -> None:
        self._size, self._name = _SIZES[size], _NAMES[size]
        self.measured = [self._measurement(run) for run in runs if _is_measured(run)]
        self.held_out = [self._measurement(run) for run in held_out if _is_measured(run)]
        self._totals = {
            self._measurement(run).size: (
                run.facts["num_parameters"], run.facts["num_non_embedding"]
            )
            for run in [*runs, *held_out] if _is_measured(run)
        }  # fmt: skip
        self.fit: ScalingFit = fit_scaling_law(self.measured, resamples=resamples, seed=seed)

    def sentence(self) -> str:
        """Return the law with its constants."""
        law = self.fit.law
        return (
            f"L(N, D) = {law.E:.3f} + {law.A:.4g} / N^{law.alpha:.3f} + {law.B:.4g} / "
            f"D^{law.beta:.3f}, N {self._name}, D tokens"
        )

    def tables(self) -> list[Table]:
        """Return the constants, the predictions, the runs and the best shares of compute."""
        return [self._constants(), *self._predictions(), self._runs(), self._best_splits()]

    def charts(self) -> list[Chart]:
        """Return loss over tokens for each size, and lines of equal loss over size and tokens."""
        return [self._loss_chart(), self._plane()]

    def as_json(self) -> dict[str, Any]:
        """Return constants, intervals and predictions."""
        return {
            "size": self._size,
            "runs": len(self.measured),
            "constants": {name: getattr(self.fit.law, name) for name in CONSTANTS},
            "intervals_95": {name: self.fit.interval(name) for name in CONSTANTS},
            "rms_log_residual": _rms([self._error(run) for run in self.measured]),
            "held_out": [
                {
                    "size": run.size,
                    "tokens": run.tokens,
                    "measured": run.loss,
                    "predicted": (found := self.fit.predict(run.size, run.tokens))[0],
                    "interval_95": found[1:],
                }
                for run in self.held_out
            ],
        }

    def _measurement(self, run: RunRecord) -> Measurement:
        return Measurement(
            run.facts[self._size], run.last_step["tokens"], run.final["val_loss"]
        )  # fmt: skip

    def _error(self, run: Measurement) -> float:
        return math.log(run.loss / self.fit.law.loss(run.size, run.tokens))

    def _constants(self) -> Table:
        meaning = {
            "E": "loss that neither size nor text removes",
            "A": "weight of the size",
            "B": "weight of the text",
            "alpha": "exponent of the size",
            "beta": "exponent of the text",
        }
        rows = []
        for name in CONSTANTS:
            low, high = self.fit.interval(name)
            value = getattr(self.fit.law, name)
            rows.append((name, f"{value:.4g}", f"{low:.4g} to {high:.4g}", meaning[name]))
        return Table(
            "the fitted law",
            f"{self.sentence()}. Huber's loss on log L over {len(self.measured)} runs; 95 % "
            "intervals by resampling what lies between law and runs. Root mean square of that: "
            f"{_rms([self._error(run) for run in self.measured]):.2%} of the loss.",
            ("constant", "value", "95 % interval", "meaning"),
            tuple(rows),
        )

    def _predictions(self) -> list[Table]:
        if not self.held_out:
            return []
        rows = []
        for run in self.held_out:
            value, low, high = self.fit.predict(run.size, run.tokens)
            rows.append(
                (
                    self._total(run),
                    short(run.size),
                    short(run.tokens),
                    f"{value:.4f}",
                    f"{low:.4f} to {high:.4f}",
                    f"{run.loss:.4f}",
                    f"{value / run.loss - 1:+.2%}",
                )
            )
        return [
            Table(
                "a larger run, predicted and measured",
                "The fit has not seen it.",
                ("parameters", "N", "tokens", "predicted loss", "95 % interval", "measured",
                 "predicted is off by"),
                tuple(rows),
            )
        ]  # fmt: skip

    def _runs(self) -> Table:
        rows = tuple(
            (
                self._total(run),
                short(run.size),
                short(run.tokens),
                f"{run.tokens / run.size:.1f}",
                f"{run.loss:.4f}",
                f"{self.fit.law.loss(run.size, run.tokens):.4f}",
                f"{self._error(run):+.2%}",
            )
            for run in sorted(self.measured, key=lambda run: (run.size, run.tokens))
        )
        note = f"N: {self._name}. Held-out loss, nats per token."
        return Table(
            "runs of the ladder", note,
            ("parameters", "N", "tokens D", "D / N", "measured", "law", "off by"), rows,
        )  # fmt: skip

    def _best_splits(self) -> Table:
        spent = [6 * run.size * run.tokens for run in self.measured]
        rows = []
        for compute in np.geomspace(min(spent), max(spent) * 10, 5).tolist():
            size, tokens = self.fit.law.best_split(compute)
            loss = self.fit.law.loss(size, tokens)
            rows.append(
                (short(compute), short(size), short(tokens), f"{tokens / size:.1f}", f"{loss:.3f}")
            )
        return Table(
            "what the law says to spend compute on",
            "Lowest loss at 6·N·D FLOPs; the last row is ten times what the largest run took.",
            ("FLOPs", "N", "tokens D", "D / N", "loss"),
            tuple(rows),
        )

    def _total(self, run: Measurement) -> str:
        return short(self._totals[run.size][0])

    def _loss_chart(self) -> Chart:
        everything = [*self.measured, *self.held_out]
        tokens = [run.tokens for run in everything]
        grid = np.geomspace(min(tokens), max(tokens), 60).tolist()
        lines = []
        for colour, size in enumerate(sorted({run.size for run in everything})):
            seen = [run for run in self.measured if run.size == size]
            kept_out = [run for run in self.held_out if run.size == size]
            law = [(d, self.fit.law.loss(size, d)) for d in grid]
            name = f"N = {short(size)}" + ("" if seen else ", held out")
            style = "line" if seen else "dashes"
            lines.append(Line(label=name, points=law, style=style, colour=colour))
            dots = [(run.tokens, run.loss) for run in [*seen, *kept_out]]
            lines.append(Line(label=name, points=dots, style="points", colour=colour))
        return line_chart(
            "Held-out loss, nats per token: runs (dots) and the law (lines)",
            lines,
            x_label="tokens",
            x_log=True,
            y_log=True,
        )

    def _plane(self) -> Chart:
        everything = [*self.measured, *self.held_out]
        sizes = [run.size for run in everything]
        tokens = [run.tokens for run in everything]
        losses = sorted(run.loss for run in everything)
        levels = np.quantile(losses, [0.1, 0.3, 0.5, 0.7, 0.9]).tolist()
        grid = np.geomspace(min(sizes) / 1.5, max(sizes) * 1.5, 80).tolist()
        low, high = min(tokens) / 2, max(tokens) * 2
        lines = []
        for colour, level in enumerate(levels):
            found = [(n, self.fit.law.tokens_for(level, n)) for n in grid]
            inside = [(n, d) for n, d in found if d is not None and low <= d <= high]
            lines.append(Line(label=f"loss {level:.3f}", points=inside, colour=colour))
        spent = [6 * n * d for n, d in zip(sizes, tokens, strict=True)]
        splits = [self.fit.law.best_split(c) for c in np.geomspace(min(spent), max(spent), 30)]
        best = [(n, d) for n, d in splits if low <= d <= high and grid[0] <= n <= grid[-1]]
        lines.append(Line(label="least compute", points=best, style="dashes", colour=7))
        lines.append(
            Line(label="runs", points=[(r.size, r.tokens) for r in everything], style="points",
                 colour=7)
        )  # fmt: skip
        return line_chart(
            "Lines of equal loss over size and tokens", lines,
            x_label=f"N, {self._name}; upwards: tokens", x_log=True, y_log=True,
        )  # fmt: skip


def _is_measured(run: RunRecord) -> bool:
    return run.status == "finished" and "val_loss" in run.final and bool(run.facts)


def _rms(values: Sequence[float]) -> float:
    return math.sqrt(sum(value * value for value in values) / len(values))
