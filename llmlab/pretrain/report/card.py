"""The parts of a report card, before they become Markdown or a page."""

import json
import math
from dataclasses import dataclass
from typing import Any

from llmlab.page import Chart, Table
from llmlab.page.axes import short
from llmlab.pretrain.report.commands import Command, next_commands
from llmlab.pretrain.report.curves import loss_charts, training_charts
from llmlab.pretrain.report.findings import findings
from llmlab.pretrain.report.record import Row, RunRecord

_SHOWN_STEPS = 6
"""Points of a run whose samples are shown; the first and the last are among them."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """Everything a report card shows."""

    title: str
    lead: str
    facts: list[tuple[str, str]]
    findings: list[str]
    charts: list[Chart]
    samples: list[tuple[int, list[Row]]]
    """(step, its samples), oldest first."""

    tables: list[Table]
    notes: list[str]
    commands: list[Command]


def make_card(run: RunRecord) -> Card:
    """Return the card of one run."""
    return Card(
        title=f"Pretraining: {run.name}",
        lead=_lead(run),
        facts=_facts(run),
        findings=findings(run),
        charts=[
            *loss_charts([*run.steps, *run.validations]),
            *training_charts(run.steps, run.validations, run.settings.get("grad_clip", 0.0)),
        ],
        samples=_samples(run),
        tables=[_validations(run), _size(run), _settings(run)],
        notes=list(run.notes),
        commands=next_commands(run),
    )


def _lead(run: RunRecord) -> str:
    ends = {
        "finished": "Finished",
        "interrupted": "Interrupted",
        "failed": "Failed",
        "unfinished": "Not finished",
    }
    device = run.facts.get("device")
    began = run.starts[0].get("time", "")[:10] if run.starts else ""
    return ", ".join(part for part in (ends[run.status], device, began) if part) + "."


def _facts(run: RunRecord) -> list[tuple[str, str]]:
    final, last = run.final, run.last_step
    found = [
        ("held-out bits per byte", _number(final.get("bits_per_byte"), ".4f")),
        ("held-out loss, nats per token", _number(final.get("val_loss"), ".4f")),
        ("parameters", _short(run.facts.get("num_parameters"))),
        ("tokens seen", _short(last.get("tokens"))),
        ("steps", _number(last.get("step"), ",")),
        ("of training", duration(run.elapsed_s) if run.elapsed_s else None),
        ("tokens per second, in all", _number(_overall_rate(run), ",.0f")),
        ("of memory at the peak", _gb((run.ended or {}).get("peak_memory_bytes"))),
    ]
    return [(name, value) for name, value in found if value is not None]


def _overall_rate(run: RunRecord) -> float | None:
    return run.last_step.get("tokens", 0) / run.elapsed_s if run.elapsed_s else None


def _samples(run: RunRecord) -> list[tuple[int, list[Row]]]:
    by_step: dict[int, list[Row]] = {}
    for row in run.samples:
        by_step.setdefault(row["step"], []).append(row)
    steps = sorted(by_step)
    if len(steps) > _SHOWN_STEPS:
        gaps = _SHOWN_STEPS - 1
        steps = [steps[round(n * (len(steps) - 1) / gaps)] for n in range(_SHOWN_STEPS)]
    return [(step, by_step[step]) for step in steps]


def _validations(run: RunRecord) -> Table:
    rows = [row for row in run.validations if "val_loss" in row]
    if len(rows) > 12:
        rows = [rows[round(n * (len(rows) - 1) / 11)] for n in range(12)]
    return Table(
        "held-out text",
        "The last row is over the whole validation split, or as much as final_eval_tokens allows.",
        ("step", "loss", "bits per byte"),
        tuple(
            (
                f"{row['step']:,}{' (end)' if row.get('final') else ''}",
                f"{row['val_loss']:.4f}",
                _number(row.get("bits_per_byte"), ".4f") or "–",
            )
            for row in rows
        ),
    )


def _size(run: RunRecord) -> Table:
    facts, model = run.facts, run.facts.get("model", {})
    loss_0 = math.log(model["vocab_size"]) if "vocab_size" in model else None
    peak = (run.ended or {}).get("peak_memory_bytes")
    tokens = run.last_step.get("tokens", 0)
    flops = facts.get("flops_per_token")
    found = [
        ("architecture", next(iter(model.get("architectures", [])), None)),
        ("parameters", _number(facts.get("num_parameters"), ",")),
        ("of these in no table of tokens", _number(facts.get("num_non_embedding"), ",")),
        ("FLOPs per token, forward and backward", _short(flops)),
        ("FLOPs in all", _short(flops * tokens) if flops and tokens else None),
        ("bytes of KV cache per token (bfloat16)", _number(facts.get("kv_bytes_per_token"), ",")),
        ("memory, estimated before", _gb(facts.get("memory_estimate_bytes"))),
        ("memory, largest measured", _gb(peak)),
        ("computed in", (run.ended or {}).get("dtype")),
        ("tokens of training text", _number(facts.get("train_tokens"), ",")),
        ("passes over it", _epochs(run)),
        ("loss of a model that knows nothing, ln V", _number(loss_0, ".3f")),
        ("versions", ", ".join(f"{k} {v}" for k, v in facts.get("versions", {}).items()) or None),
    ]  # fmt: skip
    rows = tuple((name, value) for name, value in found if value is not None)
    return Table("model and machine", "", ("", ""), rows)


def _settings(run: RunRecord) -> Table:
    rows = tuple((name, plain(value)) for name, value in run.settings.items())
    return Table("settings", "config.toml; what is not there is unset.", ("field", "value"), rows)


def _epochs(run: RunRecord) -> str | None:
    held = run.facts.get("train_tokens")
    return f"{run.last_step.get('tokens', 0) / held:.2f}" if held else None


def plain(value: Any) -> str:
    """Return a setting as people write it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def duration(seconds: float) -> str:
    """Return a time as `42 s`, `3 min 5 s` or `2 h 7 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.0f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _number(value: Any, form: str) -> str | None:
    return None if value is None else format(value, form)


def _short(value: Any) -> str | None:
    return None if value is None else short(value)


def _gb(value: Any) -> str | None:
    return None if value is None else f"{value / 1e9:.2f} GB"
