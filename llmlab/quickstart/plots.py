"""The two pictures of the report, as SVG text: the loss curve and the scores with error bars."""

import io
from collections.abc import Sequence
from typing import Any

from llmlab.errors import MissingExtraError

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise MissingExtraError("matplotlib", "evals") from error

_COLOURS = ["#1f6feb", "#e36209", "#2da44e"]


def loss_plot(rows: Sequence[dict[str, Any]]) -> str:
    """Draw training loss and held-out bits per byte over steps.

    Args:
        rows: the rows of metrics.jsonl; those with `loss` and those with `bits_per_byte` count.

    Returns:
        SVG text.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    train = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    held_out = [(row["step"], row["bits_per_byte"]) for row in rows if "bits_per_byte" in row]
    axes.plot(*zip(*train, strict=True), color=_COLOURS[0], lw=1.2)
    axes.set(xlabel="step", ylabel="training loss (nats per token)")
    axes.yaxis.label.set_color(_COLOURS[0])
    if held_out:
        right = axes.twinx()
        right.plot(*zip(*held_out, strict=True), "o-", color=_COLOURS[1], lw=1.2, ms=4)
        right.set_ylabel("held-out bits per byte", color=_COLOURS[1])
        right.spines["top"].set_visible(False)
    axes.grid(alpha=0.25)
    axes.spines["top"].set_visible(False)
    return _svg(figure)


def score_plot(
    labels: Sequence[str],
    models: Sequence[str],
    cells: Sequence[Sequence[tuple[float, ...] | None]],
) -> str:
    """Draw one group of points with error bars for each row.

    Args:
        labels: one a row.
        models: one a column.
        cells: cells[row][column] is (value, low, high), or None where nothing was measured.

    Returns:
        SVG text.
    """
    figure = Figure(figsize=(9, 0.9 + 0.5 * len(labels)), layout="constrained")
    axes = figure.subplots()
    for column, model in enumerate(models):
        points = [(row, cells[row][column]) for row in range(len(labels))]
        rows = [row + 0.16 * (column - (len(models) - 1) / 2) for row, cell in points if cell]
        found = [cell for _, cell in points if cell]
        values = [cell[0] for cell in found]
        below = [max(0.0, cell[0] - cell[1]) for cell in found]
        above = [max(0.0, cell[2] - cell[0]) for cell in found]
        axes.errorbar(
            values,
            rows,
            xerr=[below, above],
            fmt="o",
            capsize=3,
            color=_COLOURS[column],
            label=model,
        )
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.grid(axis="x", alpha=0.25)
    axes.legend(frameon=False, loc="best")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return _svg(figure)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
