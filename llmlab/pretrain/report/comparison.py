"""Several runs side by side: their curves, where they end, and the spread over seeds.

Runs whose settings differ in nothing but the seed (and their folders) form a group, and a group of
two or more has a spread: the sample standard deviation, and the range.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmlab.page import Chart, Line, Table, dot_chart, line_chart
from llmlab.page.axes import short
from llmlab.page.charts import NUM_COLOURS
from llmlab.pretrain.report.card import duration, plain
from llmlab.pretrain.report.curves import points, smoothed, thinned
from llmlab.pretrain.report.record import RunRecord

_NOT_SETTINGS = ("out", "resume", "overwrite", "tensorboard", "log")
"""Fields that do not change what is learnt."""


_WIDE = 4
"""Runs that differ so much in tokens are drawn over a logarithmic axis."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The final losses of a group of runs that differ in their seed."""

    label: str
    """What sets the group apart from the others; empty when there is one group only."""

    seeds: tuple[int, ...]
    mean: float
    std: float | None
    """Sample standard deviation; None for one run."""

    low: float
    high: float

    def __str__(self) -> str:
        if self.std is None:
            return f"{self.mean:.4f}"
        return f"{self.mean:.4f} ± {self.std:.4f} ({len(self.seeds)} seeds)"


def differing(runs: Sequence[RunRecord]) -> list[str]:
    """Return the fields whose values are not the same in all runs."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    return [
        name
        for name in names
        if name not in _NOT_SETTINGS
        and len({plain(run.settings.get(name)) for run in runs}) > 1
    ]  # fmt: skip


def spreads(runs: Sequence[RunRecord], key: str = "val_loss") -> list[Spread]:
    """Return one spread a group, the lowest mean first; runs without the number are left out.

    Args:
        runs: finished or not.
        key: of the final validation, such as `val_loss` or `bits_per_byte`.
    """
    fields = [name for name in differing(runs) if name != "seed"]
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        if key in run.final:
            groups.setdefault(label(run, fields), []).append(run)
    found = [_spread(name, group, key) for name, group in groups.items()]
    return sorted(found, key=lambda spread: spread.mean)


def label(run: RunRecord, fields: Sequence[str]) -> str:
    """Return the values of some fields as `field=value`, the run's distinguishing mark."""
    return " ".join(f"{name}={_compact(run.settings.get(name))}" for name in fields)


def comparison_charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """Return the curves of the best runs over tokens, and where each group ends."""
    charts = []
    called = dict(zip((run.folder for run in runs), names(runs), strict=True))
    best = sorted(runs, key=lambda run: _rank(run.final.get("val_loss")))[:NUM_COLOURS]
    for title, rows_of, key, smooth in (
        ("Training loss, smoothed, nats per token", lambda run: run.steps, "loss", True),
        ("Held-out bits per byte", lambda run: run.validations, "bits_per_byte", False),
    ):
        lines = []
        for run in best:
            found = points(_with_tokens(run, rows_of(run)), key, "tokens")
            values = thinned(smoothed(found)) if smooth else found
            lines.append(Line(label=called[run.folder], points=values))
        if any(len(line.points) > 1 for line in lines):
            note = f"The best {len(best)} of {len(runs)} runs." if len(best) < len(runs) else ""
            ends = [line.points[-1][0] for line in lines if line.points]
            charts.append(
                line_chart(
                    title,
                    lines,
                    x_label="tokens",
                    x_log=max(ends) >= _WIDE * min(ends),
                    y_max=_ceiling(lines),
                    note=note,
                )
            )
    groups = spreads(runs)
    if any(group.std is not None for group in groups):
        charts.append(
            dot_chart(
                "Final held-out loss: mean and range over seeds",
                [group.label or "all runs" for group in groups],
                [("loss", [(group.mean, group.low, group.high) for group in groups])],
                x_label="nats per token",
            )
        )
    return charts


def comparison_tables(runs: Sequence[RunRecord]) -> list[Table]:
    """Return a row a run, the best first, and the spread of each group of seeds."""
    tables = [_runs_table(runs)]
    groups = spreads(runs)
    if any(group.std is not None for group in groups):
        tables.append(_spread_table(runs, groups))
    return tables


def names(runs: Sequence[RunRecord]) -> list[str]:
    """Return what tells the runs apart: their folders' last parts, or more of them."""
    lasts = [run.name for run in runs]
    return [
        run.name if lasts.count(run.name) == 1 else str(run.folder)
        for run in runs
    ]  # fmt: skip


def as_row(run: RunRecord) -> dict[str, Any]:
    """Return the numbers of a run that tables and JSON show."""
    return {
        "run": str(run.folder),
        "status": run.status,
        "val_loss": run.final.get("val_loss"),
        "bits_per_byte": run.final.get("bits_per_byte"),
        "train_loss": smoothed(points(run.steps, "loss"))[-1][1] if run.steps else None,
        "steps": run.last_step.get("step"),
        "tokens": run.last_step.get("tokens"),
        "num_parameters": run.facts.get("num_parameters"),
        "num_non_embedding": run.facts.get("num_non_embedding"),
        "elapsed_s": run.elapsed_s,
        "tok_per_s": run.last_step.get("tokens", 0) / run.elapsed_s if run.elapsed_s else None,
    }


def _spread(name: str, group: Sequence[RunRecord], key: str) -> Spread:
    values = [float(run.final[key]) for run in group]
    return Spread(
        label=name,
        seeds=tuple(sorted(run.settings.get("seed", 0) for run in group)),
        mean=statistics.fmean(values),
        std=statistics.stdev(values) if len(values) > 1 else None,
        low=min(values),
        high=max(values),
    )


def _runs_table(runs: Sequence[RunRecord]) -> Table:
    fields = differing(runs)
    pairs = sorted(
        zip(names(runs), runs, strict=True), key=lambda pair: _rank(pair[1].final.get("val_loss"))
    )
    columns = ("run", *fields, "held-out loss", "bits per byte", "training loss", "tokens",
               "parameters", "time", "status")  # fmt: skip
    rows = []
    for name, run in pairs:
        row = as_row(run)
        rows.append(
            (
                name,
                *(plain(run.settings[field]) if field in run.settings else "–" for field in fields),
                *(_shown(row[key], ".4f") for key in ("val_loss", "bits_per_byte", "train_loss")),
                *(_shown(row[key], ",") for key in ("tokens", "num_parameters")),
                duration(run.elapsed_s),
                run.status,
            )
        )
    note = "Ordered by held-out loss, nats per token. Training loss is smoothed."
    return Table("runs", note, columns, tuple(rows))


def _spread_table(runs: Sequence[RunRecord], groups: Sequence[Spread]) -> Table:
    bits = {group.label: group for group in spreads(runs, "bits_per_byte")}
    rows = tuple(
        (
            group.label or "all runs",
            ", ".join(map(str, group.seeds)),
            f"{group.mean:.4f}",
            _shown(group.std, ".4f"),
            f"{group.low:.4f} to {group.high:.4f}",
            str(bits[group.label]).partition(" (")[0] if group.label in bits else "–",
        )
        for group in groups
    )
    return Table(
        "over seeds",
        "Final held-out loss, nats per token, over runs that differ in their seed only.",
        ("settings", "seeds", "mean", "standard deviation", "range", "bits per byte"),
        rows,
    )


def _with_tokens(run: RunRecord, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of validations have no tokens of their own: those of their step."""
    tokens = {row["step"]: row["tokens"] for row in run.steps if "tokens" in row}
    return [{"tokens": tokens.get(row.get("step")), **row} for row in rows]


def _ceiling(lines: Sequence[Line]) -> float | None:
    """Where the axis ends: the height that all curves are below after a twentieth of their way."""
    late = [y for line in lines for _, y in line.points[len(line.points) // 20 :]]
    return max(late) * 1.02 if len(late) > 40 * len(lines) else None


def _compact(value: Any) -> str:
    is_large = isinstance(value, int | float) and not isinstance(value, bool) and value >= 10_000
    return short(value) if is_large else plain(value)


def _rank(value: float | None) -> tuple[bool, float]:
    return (value is None, value or 0.0)


def _shown(value: Any, form: str) -> str:
    return "–" if value is None else format(value, form)
