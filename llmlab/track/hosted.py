"""Weights & Biases and Trackio, which share one interface: init, log, finish.

wandb sends to its server, or to files with `WANDB_MODE=offline`; trackio keeps a database on this
machine. Rows carry their step as a number of their own, the x-axis of every curve, because a
resumed run goes back to an earlier step and the services' own counter only rises.
"""

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

from llmlab.errors import ConfigError
from llmlab.track.trackers import numbers

PROJECT = "llmlab"
"""Name that runs are kept under; the services' own variables do not change it."""


class WandbTracker:
    """One run of Weights & Biases.

    Args:
        folder: of the run; its name is the run's, and wandb's files go below it.
        run_id: wandb goes on with the run of that id.
        settings: shown beside the run.

    Raises:
        ConfigError: wandb does not start, for want of a login for example.
    """

    def __init__(self, folder: Path, run_id: str, settings: Mapping[str, Any]) -> None:
        wandb = import_module("wandb")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(
                project=PROJECT,
                dir=str(folder),
                id=run_id,
                name=folder.resolve().name,
                config=dict(settings),
                resume="allow",
            )
        except wandb.Error as error:
            raise ConfigError(
                f"wandb does not start: {error}; run `wandb login`, or set WANDB_MODE=offline"
            ) from error
        self._run.define_metric("*", step_metric="step")

    def write(self, row: Mapping[str, Any]) -> None:
        """Send one row."""
        self._run.log({"step": row["step"], **numbers(row)})

    def close(self) -> None:
        """Wait until everything is handed over."""
        self._run.finish()


class TrackioTracker:
    """One run of Trackio; `trackio show` opens it.

    Args:
        folder: of the run; its name and the start of the id are the run's name.
        run_id: trackio goes on with the run of that name.
        settings: shown beside the run.
    """

    def __init__(self, folder: Path, run_id: str, settings: Mapping[str, Any]) -> None:
        trackio = import_module("trackio")
        with redirect_stdout(sys.stderr):  # it prints where results belong
            self._run = trackio.init(
                project=PROJECT,
                name=f"{folder.resolve().name}-{run_id[:8]}",
                config=dict(settings),
                resume="allow",
                embed=False,
            )

    def write(self, row: Mapping[str, Any]) -> None:
        """Add one row."""
        self._run.log(numbers(row), step=int(row["step"]))

    def close(self) -> None:
        """Wait until everything is written."""
        with redirect_stdout(sys.stderr):
            self._run.finish()
