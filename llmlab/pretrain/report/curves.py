"""The curves of a run as charts: loss, bits per byte, learning rate, gradient, speed.

A run has more steps than a picture has columns. So each curve is a moving average, over a shaded
band from the smallest to the largest value of the steps that share a column.
"""

import math
from collections.abc import Sequence
from typing import Any

from llmlab.page import Chart, Line, line_chart

Points = list[tuple[float, float]]

COLUMNS = 240
"""Points of a curve; what an eye tells apart at the width of a chart."""

_SPAN = 1 / 50
"""Share of a run that the moving average looks back on."""

_OWN = ("step", "val_loss", "bits_per_byte", "val_tokens", "final", "elapsed_s", "tokens")


def points(rows: Sequence[dict[str, Any]], y: str, x: str = "step", scale: float = 1.0) -> Points:
    """Return (x, y · scale) of the rows that have both as finite numbers."""
    pairs = [(row.get(x), row.get(y)) for row in rows]
    return [
        (float(a), float(b) * scale)
        for a, b in pairs
        if isinstance(a, int | float) and isinstance(b, int | float) and math.isfinite(b)
    ]


def smoothed(values: Points, span: float | None = None) -> Points:
    """Return the exponential moving average, corrected for its start.

    Args:
        values: points in the order of x.
        span: rows it looks back on; unset is a fiftieth of them all.
    """
    keep = 1 - 1 / max(1.0, span if span is not None else len(values) * _SPAN)
    total = weight = 0.0
    found = []
    for x, y in values:
        total, weight = keep * total + y, keep * weight + 1
        found.append((x, total / weight))
    return found


def thinned(values: Points, columns: int = COLUMNS) -> Points:
    """Return at most `columns` points, the last of each group; the first one stays."""
    size = max(1, math.ceil(len(values) / columns))
    return values[:1] + values[size - 1 :: size] if size > 1 else values


def band(values: Points, columns: int = COLUMNS) -> list[tuple[float, float, float]]:
    """Return (x, smallest, largest) of each group of steps."""
    size = max(1, math.ceil(len(values) / columns))
    groups = [values[at : at + size] for at in range(0, len(values), size)]
    return [(g[-1][0], min(y for _, y in g), max(y for _, y in g)) for g in groups]


def curve(label: str, values: Points, colour: int | None = None) -> Line:
    """Return a smoothed line over the band of what it smooths."""
    return Line(label=label, points=thinned(smoothed(values)), band=band(values), colour=colour)


def loss_charts(rows: Sequence[dict[str, Any]]) -> list[Chart]:
    """Return training and validation loss, and validation in bits per byte, over steps.

    The measurement at the end is over more text than those on the way, so it stands apart.

    Args:
        rows: of metrics.jsonl.
    """
    on_the_way = [row for row in rows if not row.get("final")]
    at_the_end = [row for row in rows if row.get("final")]
    train = points(rows, "loss")
    charts = []
    for title, key, first in (
        ("Loss, nats per token", "val_loss", [curve("training, smoothed", train)]),
        ("Held-out bits per byte", "bits_per_byte", []),
    ):
        lines = [
            *first,
            Line(label="held out", points=points(on_the_way, key), style="both", colour=1),
            Line(label="at the end, more of it", points=points(at_the_end, key), style="points",
                 colour=4),
        ]  # fmt: skip
        lines = [line for line in lines if line.points]
        ceiling = _ceiling(train) if first else None
        if lines:
            charts.append(line_chart(title, lines, x_label="step", y_max=ceiling))
    return charts


def training_charts(
    rows: Sequence[dict[str, Any]], validations: Sequence[dict[str, Any]], grad_clip: float
) -> list[Chart]:
    """Return what goes with the losses: schedule, gradient, speed, and any other measurement.

    Args:
        rows: of the steps.
        validations: of the measurements; keys that are not ours get a chart each.
        grad_clip: the norm gradients are cut to; 0 for none.
    """
    charts = []
    if rates := points(rows, "lr"):
        line = Line(label="learning rate", points=thinned(rates), colour=2)
        charts.append(line_chart("Learning rate", [line], x_label="step"))
    if norms := points(rows, "grad_norm"):
        lines = [curve("gradient norm", norms, 3)]
        if grad_clip:
            limit = [(norms[0][0], grad_clip), (norms[-1][0], grad_clip)]
            lines.append(Line(label="clipped above", points=limit, style="dashes", colour=7))
        charts.append(
            line_chart("Gradient norm, before clipping", lines, x_label="step", y_log=True)
        )
    for key, title, scale, colour in (
        ("tok_per_s", "Tokens per second", 1.0, 5),
        ("mfu", "MFU, % of this machine's measured matrix product", 100.0, 4),
    ):
        if found := _over_minutes(rows, key, scale):
            charts.append(
                line_chart(
                    title,
                    [curve(key, found, colour)],
                    x_label="minutes of training",
                    from_zero=True,
                )
            )
    return charts + _measured(validations)


def _over_minutes(rows: Sequence[dict[str, Any]], key: str, scale: float) -> Points:
    return [(seconds / 60, y) for seconds, y in points(rows, key, "elapsed_s", scale)]


def _measured(validations: Sequence[dict[str, Any]]) -> list[Chart]:
    """One chart for each further measurement; `KEY/SOURCE` of all sources share one."""
    groups: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for row in validations for key in row):
        group = key.partition("/")[0]
        if key not in _OWN and group != "epoch":
            groups.setdefault(group, []).append(key)
    charts = []
    for group, keys in groups.items():
        lines = [
            Line(label=key.partition("/")[2] or key, points=points(validations, key), style="both")
            for key in keys
        ]
        if any(line.points for line in lines):
            title = group if keys == [group] else f"{group}, each source"
            charts.append(line_chart(title, lines, x_label="step"))
    return charts


def _ceiling(train: Points) -> float | None:
    """Where the axis of the loss ends: the first steps would press the rest flat."""
    if len(train) < 40:
        return None
    return max(y for _, y in smoothed(train)[len(train) // 40 :]) * 1.03
