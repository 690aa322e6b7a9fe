"""How the final loss depends on each setting that a sweep varies."""

import math
from collections.abc import Sequence

from llmlab.page import Chart, Line, line_chart
from llmlab.pretrain.report.comparison import differing
from llmlab.pretrain.report.record import RunRecord

_WIDE = 8
"""A setting whose largest value is so many times its smallest is drawn on a logarithmic axis."""


def setting_charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """Return a chart for each varied setting that is a number: all runs, and the best of a value.

    Args:
        runs: of a sweep; those without a held-out loss are left out.
    """
    return [
        chart
        for field in differing(runs)
        if field != "seed" and (chart := _chart(field, runs)) is not None
    ]  # fmt: skip


def _chart(field: str, runs: Sequence[RunRecord]) -> Chart | None:
    found = [(run.settings.get(field), run.final.get("val_loss")) for run in runs]
    points = [
        (float(value), float(loss))
        for value, loss in found
        if isinstance(value, int | float) and loss is not None and math.isfinite(loss)
    ]
    values = sorted({value for value, _ in points})
    if len(values) < 2:
        return None
    best = [(value, min(loss for other, loss in points if other == value)) for value in values]
    lines = [Line(label="runs", points=points, style="points", colour=7)]
    if len(values) < len(points):
        lines.append(Line(label="best of each value", points=best, style="both", colour=0))
    return line_chart(
        f"Final held-out loss over {field}",
        lines,
        x_label=field,
        x_log=values[0] > 0 and values[-1] / values[0] >= _WIDE,
    )
