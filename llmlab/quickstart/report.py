"""report.html: one self-contained page of what the run did; quickstart.html.jinja is its layout."""

import platform
from datetime import date
from pathlib import Path

from llmlab.hardware import physical_cores
from llmlab.outputs import whole_file
from llmlab.page import Chart, dot_chart, render
from llmlab.pretrain.report.curves import loss_charts
from llmlab.quickstart.config import QuickstartConfig
from llmlab.quickstart.journal import Journal
from llmlab.track import read_metrics


def write_report(config: QuickstartConfig, journal: Journal) -> Path:
    """Write `config.out/report.html` and return its path."""
    page = render(
        Path(__file__).with_name("quickstart.html.jinja"),
        title="llmlab quickstart report",
        machine=f"{platform.system()} {platform.machine()}, {physical_cores()} cores",
        date=date.today().isoformat(),
        facts=[*journal.facts, ("minutes in all", f"{journal.total_s / 60:.1f}")],
        missing=journal.missing,
        loss_charts=loss_charts(read_metrics(config.out / "pretrain" / "metrics.jsonl")),
        samples=journal.samples,
        checks=journal.checks,
        served=journal.served,
        answers=journal.answers,
        models=journal.models,
        scores=_rows(journal),
        score_chart=_score_chart(journal),
        stages=journal.stages,
        total_s=journal.total_s,
        commands=commands(config, journal),
    )
    path = config.out / "report.html"
    with whole_file(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path


def commands(config: QuickstartConfig, journal: Journal) -> list[str]:
    """Return commands that work on the folders of this run as they stand."""
    out = config.out
    has_chat_model, has_index = "smollm2" in journal.models, bool(journal.answers)
    chat_model = "smollm2" if has_chat_model else "model"
    lines = [
        f'llmlab generate --model {out}/pretrain/model --prompt "def main():"',
        f"llmlab pretrain --data {out}/shards --out {out}/longer --max-seconds 3600",
        f"llmlab serve --model {out}/{chat_model} --port 8000",
        "llmlab chat --base-url http://127.0.0.1:8000",
        f"llmlab eval run --model {out}/model --tasks bits_per_byte --out {out}/results/mine",
    ]
    if has_index:
        lines.append(
            f"llmlab rag ask --index {out}/index --base-url http://127.0.0.1:8000/v1 "
            '"How do I split a string like a shell does?"'
        )
    return lines


def _rows(journal: Journal) -> list[dict[str, object]]:
    return [
        {
            "task": score.task,
            "metric": score.metric,
            "count": score.count,
            "cells": [
                f"{cell[0]:.3f} [{cell[1]:.3f}, {cell[2]:.3f}]" if cell else "–"
                for cell in score.cells
            ],
        }
        for score in journal.scores
    ]


def _score_chart(journal: Journal) -> Chart:
    return dot_chart(
        "Scores with bootstrap 95 % intervals",
        [score.task for score in journal.scores],
        [
            (model, [score.cells[number] for score in journal.scores])
            for number, model in enumerate(journal.models)
        ],
        x_label="score",
        from_zero=True,
    )
