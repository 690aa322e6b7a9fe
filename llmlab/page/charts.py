"""Charts as SVG text for a page: lines over an axis, and dots with error bars.

They take the page's colours, so light and dark both work, and are drawn small, so that two stand
side by side on a desk and one fills a telephone with its words still readable. No library draws
them, for a report at the end of a run must not depend on an optional one.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal

from llmlab.page.axes import Axis, axis_over, short

NUM_COLOURS = 8
"""Colours of the page, `--c0` to `--c7`; lines beyond them begin again."""

_WIDTH, _HEIGHT = 460, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 14, 10, 40
_ROW = 26
"""Height of one row of a dot chart."""

_LABEL_CHARS = 30
"""Longest name of a row; a longer one is cut, and whole where the mouse rests on its dot."""

_VIEW_BOX = re.compile(r'^<svg viewBox="0 0 ([\d.]+) ([\d.]+)"')


@dataclass(frozen=True, kw_only=True)
class Line:
    """One thing drawn: values that follow one another."""

    label: str
    points: Sequence[tuple[float, float]]
    """(x, y); values that are not finite, or not positive on a logarithmic axis, are left out."""

    style: Literal["line", "dashes", "points", "both"] = "line"
    band: Sequence[tuple[float, float, float]] = ()
    """(x, low, high) of a shaded area behind it."""

    colour: int | None = None
    """Number of the page's colour; unset takes the line's place in the chart."""


@dataclass(frozen=True)
class Chart:
    """A picture with its words."""

    title: str
    svg: str
    legend: tuple[tuple[int, str], ...]
    """(colour, label) of each line; empty when there is one only."""

    note: str = ""

    def as_file(self) -> str:
        """Return the text of an .svg file: the picture with its title, legend and colours."""
        width, height = (int(float(n)) for n in _VIEW_BOX.findall(self.svg)[0])
        top, below = 26, 18 * len(self.legend) + 8
        keys = "".join(
            f'<rect class="f{colour}" x="{_LEFT}" y="{height + 18 * n + 5}" width="14" height="4"/>'
            f'<text x="{_LEFT + 22}" y="{height + 18 * n + 11}">{escape(label)}</text>'
            for n, (colour, label) in enumerate(self.legend)
        )
        style = Path(__file__).with_name("chart.css").read_text(encoding="utf-8")
        inner = self.svg.replace("<svg", f'<svg width="{width}" height="{height}"', 1)
        return (
            f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" width="{2 * width}" '
            f'viewBox="0 {-top} {width} {height + top + below}"><style>{style}</style>'
            f'<text x="{_LEFT - 40}" y="-8">{escape(self.title)}</text>{inner}{keys}</svg>\n'
        )


@dataclass(frozen=True)
class _Paper:
    x: Axis
    y: Axis

    def at(self, x: float, y: float) -> str:
        # A point far outside would be cut off by the clip; some browsers fail on huge numbers.
        low, high = -2000.0, 4000.0
        return (
            f"{min(max(self.x.place(x), low), high):.1f},{min(max(self.y.place(y), low), high):.1f}"
        )


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    x_log: bool = False,
    y_log: bool = False,
    y_max: float | None = None,
    from_zero: bool = False,
    note: str = "",
) -> Chart:
    """Draw lines over one pair of axes.

    Args:
        title: what the values are, with their unit.
        lines: what to draw; the first ones lie behind.
        x_label: name of the horizontal axis.
        x_log: whether it is logarithmic.
        y_log: whether the vertical axis is.
        y_max: where the vertical axis ends, if not with the largest value.
        from_zero: whether the vertical axis begins at 0.
        note: a sentence below.
    """
    kept = [_drawable(line, x_log, y_log) for line in lines]
    xs = [x for line in kept for x, _ in line.points]
    ys = [y for line in kept for y in _heights(line) if y_max is None or y <= y_max]
    if from_zero:
        ys.append(0.0)
    paper = _Paper(
        axis_over(xs, is_log=x_log, start=_LEFT, end=_WIDTH - _RIGHT, pad=0.01),
        axis_over(ys, is_log=y_log, start=_HEIGHT - _BOTTOM, end=_TOP),
    )
    parts = [_grid(paper, x_label)]
    colours = [n if line.colour is None else line.colour for n, line in enumerate(kept)]
    drawn = [
        _drawn(line, colour % NUM_COLOURS, paper)
        for colour, line in zip(colours, kept, strict=True)
    ]
    parts.append(_clipped("".join(drawn)))
    legend = [
        (colour % NUM_COLOURS, line.label) for colour, line in zip(colours, kept, strict=True)
    ]
    return Chart(
        title,
        _svg(title, _HEIGHT, "".join(parts)),
        tuple(dict.fromkeys(legend)) if len(lines) > 1 else (),
        note,
    )


def dot_chart(
    title: str,
    labels: Sequence[str],
    series: Sequence[tuple[str, Sequence[tuple[float, ...] | None]]],
    *,
    x_label: str,
    from_zero: bool = False,
    note: str = "",
) -> Chart:
    """Draw a row of dots with error bars for each label.

    Args:
        title: what the values are.
        labels: names of the rows.
        series: name and one (value, low, high) a row; None where nothing was measured.
        x_label: name of the axis.
        from_zero: whether the axis begins at 0.
        note: a sentence below.
    """
    found = [cell for _, cells in series for cell in cells if cell is not None]
    chars = max((len(label) for label in labels), default=0)
    left = 12 + 6.8 * min(chars, _LABEL_CHARS)
    values = [*(v for cell in found for v in cell), *([0.0] if from_zero else [])]
    x = axis_over(values, is_log=False, start=left, end=_WIDTH - _RIGHT)
    height = _TOP + _ROW * len(labels) + _BOTTOM
    bottom = height - _BOTTOM
    parts = [_vertical_grid(x, bottom, x_label)]
    for row, label in enumerate(labels):
        y = _TOP + _ROW * (row + 0.5)
        name = label if len(label) <= _LABEL_CHARS else label[: _LABEL_CHARS - 1] + "…"
        parts.append(f'<text x="{left - 8:.1f}" y="{y + 4:.1f}" class="end">{escape(name)}</text>')
        for number, (name, cells) in enumerate(series):
            shift = 7 * (number - (len(series) - 1) / 2)
            cell = cells[row]
            if cell is not None:
                parts.append(_dot(cell, x, y + shift, number % NUM_COLOURS, f"{label}, {name}"))
    legend = tuple((number % NUM_COLOURS, name) for number, (name, _) in enumerate(series))
    svg = _svg(title, height, "".join(parts))
    return Chart(title, svg, legend if len(series) > 1 else (), note)


def _drawable(line: Line, x_log: bool, y_log: bool) -> Line:
    def fits(x: float, *ys: float) -> bool:
        finite = math.isfinite(x) and all(map(math.isfinite, ys))
        return finite and (x > 0 or not x_log) and (all(y > 0 for y in ys) or not y_log)

    return Line(
        label=line.label,
        points=[point for point in line.points if fits(*point)],
        style=line.style,
        band=[part for part in line.band if fits(*part)],
        colour=line.colour,
    )


def _heights(line: Line) -> Iterable[float]:
    yield from (y for _, y in line.points)
    for _, low, high in line.band:
        yield low
        yield high


def _drawn(line: Line, colour: int, paper: _Paper) -> str:
    parts = []
    if line.band:
        upper = [paper.at(x, high) for x, _, high in line.band]
        lower = [paper.at(x, low) for x, low, _ in reversed(line.band)]
        parts.append(f'<polygon class="f{colour}" points="{" ".join(upper + lower)}"/>')
    if line.style != "points" and len(line.points) > 1:
        kind = f"s{colour} dashes" if line.style == "dashes" else f"s{colour}"
        places = " ".join(paper.at(x, y) for x, y in line.points)
        parts.append(f'<polyline class="{kind}" points="{places}"/>')
    if line.style in ("points", "both") or len(line.points) == 1:
        parts += [_marker(line.label, x, y, colour, paper) for x, y in line.points]
    return "".join(parts)


def _marker(label: str, x: float, y: float, colour: int, paper: _Paper) -> str:
    at_x, at_y = paper.at(x, y).split(",")
    words = escape(f"{label}: {short(y)} at {short(x)}")
    return (
        f'<circle class="d{colour}" cx="{at_x}" cy="{at_y}" r="3"><title>{words}</title></circle>'
    )


def _dot(cell: tuple[float, ...], x: Axis, y: float, colour: int, name: str) -> str:
    value, low, high = cell
    words = escape(f"{name}: {short(value)} [{short(low)}, {short(high)}]")
    ends = "".join(
        f'<line class="s{colour}" x1="{x.place(v):.1f}" x2="{x.place(v):.1f}" '
        f'y1="{y - 3:.1f}" y2="{y + 3:.1f}"/>'
        for v in (low, high)
    )
    return (
        f'<line class="s{colour}" x1="{x.place(low):.1f}" x2="{x.place(high):.1f}" '
        f'y1="{y:.1f}" y2="{y:.1f}"/>{ends}<circle class="d{colour}" cx="{x.place(value):.1f}" '
        f'cy="{y:.1f}" r="3.5"><title>{words}</title></circle>'
    )


def _grid(paper: _Paper, x_label: str) -> str:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = [_vertical_grid(paper.x, bottom, x_label)]
    for tick in paper.y.ticks():
        y = paper.y.place(tick)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="end" x="{_LEFT - 7}" y="{y + 4:.1f}">{short(tick)}</text>'
        )
    return "".join(parts)


def _vertical_grid(x: Axis, bottom: float, label: str) -> str:
    parts = []
    for tick in x.ticks():
        at = x.place(tick)
        parts.append(
            f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{bottom:.1f}"/>'
            f'<text class="middle" x="{at:.1f}" y="{bottom + 16:.1f}">{short(tick)}</text>'
        )
    middle = (x.start + x.end) / 2
    name = f'<text class="middle" x="{middle:.1f}" y="{bottom + 34:.1f}">{escape(label)}</text>'
    return "".join([*parts, name])


def _clipped(content: str) -> str:
    """What lies outside the axes is not shown: an inner svg cuts it off, without an id."""
    x, y = _LEFT - 4, _TOP - 4
    width, height = _WIDTH - _LEFT - _RIGHT + 8, _HEIGHT - _TOP - _BOTTOM + 8
    place = f'x="{x}" y="{y}" width="{width}" height="{height}"'
    return f'<svg {place} viewBox="{x} {y} {width} {height}">{content}</svg>'


def _svg(title: str, height: float, content: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"{content}</svg>"
    )
