import math
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.page import Line, Table, dot_chart, line_chart
from llmlab.page.axes import axis_over, short

SVG = ElementTree  # charts are read back as XML


def places(svg: str, tag: str) -> list[dict[str, str]]:
    return [node.attrib for node in SVG.fromstring(svg).iter(tag)]


@given(
    st.lists(st.floats(1e-9, 1e12), min_size=1, max_size=20),
    st.booleans(),
)
def test_an_axis_holds_its_values_and_has_round_ticks(values, is_log):
    axis = axis_over(values, is_log=is_log, start=50, end=450)
    assert all(49.99 <= axis.place(value) <= 450.01 for value in values)
    ticks = axis.ticks()
    assert ticks == sorted(set(ticks))
    assert 1 <= len(ticks) <= 12
    assert all(49.9 <= axis.place(tick) <= 450.1 for tick in ticks)


def test_ticks_by_hand():
    assert axis_over([0, 10], is_log=False, start=0, end=1, pad=0).ticks() == [0, 2, 4, 6, 8, 10]
    log = axis_over([1e3, 1e6], is_log=True, start=0, end=3, pad=0)
    assert log.ticks() == pytest.approx([1e3, 1e4, 1e5, 1e6])
    assert [log.place(value) for value in (1e3, 1e4, 1e6)] == pytest.approx([0, 1, 3])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (1.5, "1.5"), (1500, "1.5k"), (2_000_000, "2M"), (3e9, "3B"), (4e12, "4T"),
        (0.05, "0.05"), (0.0003, "3e-4"), (-0.00123, "-1.23e-3"), (999.9, "999.9"),
        (123456, "123.5k"),
    ],
)  # fmt: skip
def test_numbers_are_short(value, text):
    assert short(value) == text


def test_a_line_goes_through_its_points_and_leaves_out_what_has_no_place():
    points = [(1, 10.0), (2, math.nan), (3, 5.0), (4, math.inf), (5, 0.0)]
    svg = line_chart("loss", [Line(label="train", points=points)], x_label="step").svg
    (line,) = places(svg, "{*}polyline") or places(svg, "polyline")
    corners = [tuple(map(float, place.split(","))) for place in line["points"].split()]
    assert len(corners) == 3
    assert corners[0][0] < corners[1][0] < corners[2][0]
    assert corners[0][1] < corners[1][1] < corners[2][1], "larger values lie higher"
    assert corners[1][1] == pytest.approx((corners[0][1] + corners[2][1]) / 2, abs=0.2)


@pytest.mark.parametrize(
    "lines", [[], [Line(label="none", points=[])], [Line(label="one", points=[(1, 1)])]]
)
def test_nothing_and_one_point_are_drawn(lines):
    chart = line_chart("empty", lines, x_label="step", x_log=True, y_log=True)
    assert len(places(chart.svg, "circle")) == (1 if lines and lines[0].points else 0)


def test_hostile_words_stay_words():
    name = '"><script>alert(1)</script>'
    line = Line(label=name, points=[(1, 1), (2, 2)], style="both")
    chart = line_chart(name, [line], x_label=name)
    assert "<script" not in chart.svg
    dots = dot_chart(name, [name], [(name, [(1.0, 0.5, 1.5)]), ("other", [None])], x_label=name)
    assert "<script" not in dots.svg
    for svg in (chart.svg, dots.svg):
        assert name in "".join(SVG.fromstring(svg).itertext())
    assert dots.legend == ((0, name), (1, "other"))


def test_error_bars_lie_around_their_dot():
    svg = dot_chart("score", ["a", "b"], [("m", [(2.0, 1.0, 4.0), None])], x_label="x").svg
    (dot,) = places(svg, "circle")
    bar = next(line for line in places(svg, "line") if line["y1"] == line["y2"] == dot["cy"])
    low, value, high = float(bar["x1"]), float(dot["cx"]), float(bar["x2"])
    assert (value - low) / (high - low) == pytest.approx(1 / 3, abs=0.01)


def test_a_table_in_markdown_and_text():
    table = Table("a|b", "note *x*", ("name", "n", "is"), (("x_y", "1", "a"), ("z", "±22", "bc")))
    assert table.as_markdown().splitlines() == [
        "## a\\|b",
        "",
        "note \\*x\\*",
        "",
        "| name | n | is |",
        "| --- | --: | --- |",
        "| x\\_y | 1 | a |",
        "| z | ±22 | bc |",
    ]
    assert table.as_text() == "a|b\n  name    n  is\n  x_y     1  a\n  z     ±22  bc"


def test_a_chart_as_a_file_brings_its_words_and_colours():
    lines = [Line(label=name, points=[(1, 1), (2, 4)], style="both") for name in ("a<b", "c")]
    text = line_chart("loss & size", lines, x_label="tokens").as_file()
    root = SVG.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    words = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"loss & size", "a<b", "c", "tokens"} <= set(words)
    assert "prefers-color-scheme: dark" in text
