"""`llmlab pretrain sweep`: show the progress, print the tables, name the page."""

import sys
from dataclasses import dataclass

from llmlab.pretrain.sweep.config import SweepConfig
from llmlab.pretrain.sweep.run import SweepResult, sweep
from llmlab.track import Progress


@dataclass(frozen=True)
class Swept(SweepResult):
    """A sweep as the user sees it."""

    def __str__(self) -> str:
        return f"{self.text}\n\n{self.report}"


def run(config: SweepConfig) -> Swept:
    """Train the runs of a sweep and compare them.

    Raises:
        SystemExit: 130 after an interrupt, once the checkpoint of the run at hand is saved.
    """
    progress = Progress(sys.stderr, "sweep")
    result = sweep(config, on_progress=progress)
    progress.close()
    if result.status == "interrupted":
        print("llmlab: interrupted; go on with the same command", file=sys.stderr)
        raise SystemExit(130)
    return Swept(**vars(result))
