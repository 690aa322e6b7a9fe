"""What a run found, for people: a table.

Not here: the numbers (measures.py), the plot (plot.py), files (folder.py).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from llmlab.serve.bench.config import Level
from llmlab.serve.bench.measures import Latency, LoadRow, LongPromptRow
from llmlab.serve.bench.run import Results

_WORDS = ("server", "load", "ms")


def table(results: Results) -> str:
    """Return the rows as text, with what must be known to read them."""
    cells: list[list[dict[str, str]]] = [[], []]
    for row in results.rows:
        is_load = isinstance(row, LoadRow)
        first, latencies = _load_cells(row, results) if is_load else _long_prompt_cells(row)
        where = {"server": row.label, "load": str(_load(row))}
        cells[0].append({**where, **first})
        cells[1] += [{**where, **_latency_cells(*named)} for named in latencies.items()]
    return "\n".join([*_aligned(cells[0]), "", *_aligned(cells[1]), "", *_notes(results)])


def as_json(results: Results) -> dict[str, Any]:
    """Return everything, numbers with four significant digits."""
    return _rounded(dataclasses.asdict(results))


def _load_cells(row: LoadRow, results: Results) -> tuple[dict[str, str], dict[str, Latency | None]]:
    cells = {
        "requests": str(row.requests),
        "failed": str(row.failed),
        "output tok/s": f"{row.output_tok_per_s:.1f}",
        "total tok/s": f"{row.total_tok_per_s:.1f}",
        "requests/s": f"{row.requests_per_s:.2f}",
    }
    if len(results.servers) > 1:
        cells[f"x {results.servers[-1].label}"] = f"{row.ratio.median:.2f}" if row.ratio else ""
    latencies = {"first token": row.ttft_ms, "between tokens": row.itl_ms}
    if _holds_many(row):
        cells["tokens/event"] = f"{row.tokens_per_event:.2f}"
        latencies["per token after the first"] = row.tpot_ms
    return cells, {**latencies, "whole answer": row.e2e_ms}


def _long_prompt_cells(
    row: LongPromptRow,
) -> tuple[dict[str, str], dict[str, Latency | None]]:
    cells = {
        "long prompts": str(row.long_prompts),
        "failed": str(row.failed),
        "of tokens": "" if row.prompt_tokens is None else f"{row.prompt_tokens:.0f}",
        "p99 ratio": "" if row.p99_ratio is None else f"{row.p99_ratio:.2f}",
    }
    return cells, {
        "between tokens, before": row.idle_itl_ms,
        "between tokens, meanwhile": row.busy_itl_ms,
        "first token of the long prompt": row.ttft_ms,
    }


def _latency_cells(name: str, latency: Latency | None) -> dict[str, str]:
    parts = ("mean", "p50", "p90", "p99")
    numbers = {part: f"{getattr(latency, part):.1f}" if latency else "" for part in parts}
    return {"ms": name, **numbers}


def _aligned(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Lay out columns: words to the left, numbers to the right."""
    heads = {head: head for row in rows for head in row}
    lines = [heads, *rows]
    widths = {head: max(len(line.get(head, "")) for line in lines) for head in heads}
    return [
        "  ".join(
            line.get(head, "").ljust(width) if head in _WORDS else line.get(head, "").rjust(width)
            for head, width in widths.items()
        ).rstrip()
        for line in lines
    ]


def _notes(results: Results) -> list[str]:
    config = results.config
    notes = []
    if any(isinstance(row, LoadRow) and _holds_many(row) for row in results.rows):
        notes.append("An event held more than one token; times between tokens are between events.")
    for row in results.rows:
        load = f"{row.label}, {_load(row)}"
        notes += [f"{load}: {count} x {error}" for error, count in row.errors.items()]
        if isinstance(row, LoadRow):
            notes += _reading_notes(row, load)
    if config.mix != "long-prefill" and len(results.servers) > 1:
        notes.append(
            f"x {results.servers[-1].label}: output tokens per second against its own in the same "
            f"round, median of {config.rounds}."
        )
    notes += [
        f"{server.label} counts no tokens: events are counted in place of output tokens."
        for server in results.servers
        if not server.counts_tokens
    ]
    return notes


def _reading_notes(row: LoadRow, load: str) -> list[str]:
    notes = []
    if row.output_tokens < row.asked_tokens:
        share = row.output_tokens / row.asked_tokens
        notes.append(f"{load}: answers had {share:.0%} of the tokens asked for.")
    if row.cached_tokens:
        notes.append(f"{load}: {row.cached_tokens / row.prompt_tokens:.0%} of prompts was cached.")
    return notes


def _holds_many(row: LoadRow) -> bool:
    return (row.tokens_per_event or 1) > 1.005


def _load(row: LoadRow | LongPromptRow) -> Level:
    return Level(row.concurrency, row.rate if isinstance(row, LoadRow) else None)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
