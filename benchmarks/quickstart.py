"""Claim: raw text to a served, evaluated model in minutes on two cores.

Runs `llmlab quickstart` into a temporary folder and keeps its seconds per stage and its scores.

    python -m benchmarks.quickstart [MINUTES]
"""

import sys
import tempfile
from pathlib import Path

from benchmarks.rows import append_row
from llmlab.quickstart.config import QuickstartConfig
from llmlab.quickstart.run import run_stages
from llmlab.track import Progress


def main(minutes: float) -> None:
    """Run once and append one row."""
    with tempfile.TemporaryDirectory() as name:
        config = QuickstartConfig(out=Path(name) / "out", minutes=minutes)
        journal = run_stages(config, on_progress=Progress(sys.stderr))
    row = {
        "minutes_of_pretraining": minutes,
        "total_s": round(journal.total_s, 1),
        "stages_s": {stage.name: round(stage.seconds, 1) for stage in journal.stages},
        "facts": dict(journal.facts),
        "scores": {
            f"{score.task} {score.metric}": dict(zip(journal.models, score.cells, strict=True))
            for score in journal.scores
        },
    }
    print(append_row("quickstart", row), row)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 3.0)
