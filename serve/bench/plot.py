"""Pictures of a run: what a server does as the load grows, and what long prompts do to streams.

Not here: the numbers (measures.py), where they are written (folder.py).
"""

from collections.abc import Callable, Sequence

from llmlab.errors import MissingExtraError
from llmlab.serve.bench.measures import Latency, LoadRow, LongPromptRow
from llmlab.serve.bench.run import Results

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    raise MissingExtraError("matplotlib", "serve") from error

_COLOURS = ("#1f6feb", "#d1592b", "#2a9d5c", "#8250df", "#9a6700", "#57606a")
_LATENCIES: tuple[tuple[str, Callable[[LoadRow], Latency | None]], ...] = (
    ("time to first token, ms", lambda row: row.ttft_ms),
    ("inter-token latency, ms", lambda row: row.itl_ms),
)


def load_figure(results: Results) -> Figure:
    """Throughput and latencies over the load; fixed concurrencies above, rates below."""
    rows = [row for row in results.rows if isinstance(row, LoadRow)]
    kinds = [
        ("requests at once", [row for row in rows if row.concurrency is not None]),
        ("requests per second", [row for row in rows if row.rate is not None]),
    ]
    kinds = [(name, own) for name, own in kinds if own]
    figure = Figure(figsize=(13, 4.2 * len(kinds)), layout="constrained")
    panels = figure.subplots(len(kinds), 3, squeeze=False)
    for (name, own), (speed, *latencies) in zip(kinds, panels, strict=True):
        _draw_speed(speed, own, results)
        for axes, (title, pick) in zip(latencies, _LATENCIES, strict=True):
            _draw_latency(axes, own, results, title, pick)
        for axes in (speed, *latencies):
            _finish(axes, name, own)
    figure.suptitle(_title(results))
    return figure


def long_prompt_figure(results: Results) -> Figure:
    """Inter-token latencies of the streams, before and while a long prompt is read."""
    rows = [row for row in results.rows if isinstance(row, LongPromptRow)]
    figure = Figure(figsize=(max(6.0, 2.2 * len(rows) + 2), 4.2), layout="constrained")
    axes = figure.subplots()
    bars = (
        ("before, p50", "#b6d4fe", lambda row: row.idle_itl_ms and row.idle_itl_ms.p50),
        ("before, p99", "#1f6feb", lambda row: row.idle_itl_ms and row.idle_itl_ms.p99),
        ("meanwhile, p50", "#f3c7b1", lambda row: row.busy_itl_ms and row.busy_itl_ms.p50),
        ("meanwhile, p99", "#d1592b", lambda row: row.busy_itl_ms and row.busy_itl_ms.p99),
    )
    for place, (name, colour, pick) in enumerate(bars):
        heights = [pick(row) or 0.0 for row in rows]
        lefts = [number + 0.2 * (place - 1.5) for number in range(len(rows))]
        axes.bar_label(
            axes.bar(lefts, heights, 0.18, color=colour, label=name), fmt="%.0f", fontsize=8
        )
    labels = [
        f"{row.label}\n{row.concurrency} streams"
        + (f", p99 x {row.p99_ratio:.2f}" if row.p99_ratio else "")
        for row in rows
    ]
    axes.set_xticks(range(len(rows)), labels)
    axes.set_ylabel("inter-token latency, ms")
    axes.grid(axis="y", alpha=0.3)
    axes.margins(y=0.12)
    axes.legend(fontsize=8)
    figure.suptitle(f"Streams while a prompt of {results.config.long_len} tokens is read")
    return figure


def _draw_speed(axes: Axes, rows: Sequence[LoadRow], results: Results) -> None:
    for colour, label, own in _by_server(rows, results):
        x = [_x(row) for row in own]
        axes.plot(x, [row.output_tok_per_s for row in own], "o-", color=colour, label=label)
    axes.set_title("output tokens per second")
    axes.set_ylim(bottom=0)


def _draw_latency(
    axes: Axes,
    rows: Sequence[LoadRow],
    results: Results,
    title: str,
    pick: Callable[[LoadRow], Latency | None],
) -> None:
    for colour, label, own in _by_server(rows, results):
        found = [(_x(row), latency) for row in own if (latency := pick(row))]
        for part, style in (("p50", "o-"), ("p99", "^--")):
            y = [getattr(latency, part) for _, latency in found]
            axes.plot([x for x, _ in found], y, style, color=colour, label=f"{label} {part}")
    axes.set_title(title)
    axes.set_ylim(bottom=0)


def _finish(axes: Axes, name: str, rows: Sequence[LoadRow]) -> None:
    axes.set_xlabel(name)
    axes.set_xscale("log", base=2)
    ticks = sorted({_x(row) for row in rows})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _by_server(rows: Sequence[LoadRow], results: Results) -> list[tuple[str, str, list[LoadRow]]]:
    return [
        (
            _COLOURS[number % len(_COLOURS)],
            server.label,
            sorted((row for row in rows if row.label == server.label), key=_x),
        )
        for number, server in enumerate(results.servers)
    ]


def _x(row: LoadRow) -> float:
    return row.concurrency or row.rate or 0


def _title(results: Results) -> str:
    config = results.config
    models = ", ".join(dict.fromkeys(server.model for server in results.servers))
    return f"{models}: {config.mix}, {config.input_len} tokens in, {config.answer_len} out"
