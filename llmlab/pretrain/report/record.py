"""What a run's folder tells: one object, read from its files, however the run ended.

Rows are read by key; a file or a key that is not there leaves a gap, never an error, so that runs
which were killed, and those of other versions, can be reported.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmlab.errors import DataError
from llmlab.track import read_metrics

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run."""

    folder: Path
    settings: Row
    """config.toml."""

    steps: Sequence[Row]
    """Rows of metrics.jsonl with a training loss."""

    validations: Sequence[Row]
    """Rows of metrics.jsonl with a measurement; those at the end have `final`."""

    samples: Sequence[Row]
    """`step`, `prompt` and `text`."""

    starts: Sequence[Row]
    """What was known at each start; the first one begins the run, others resume it."""

    ended: Row | None
    """How the last start ended; None when it was killed, or still goes on."""

    notes: Sequence[str]
    """What the run said."""

    checkpoints: Sequence[int]
    """Steps with a checkpoint, ascending."""

    has_model: bool

    @property
    def name(self) -> str:
        """Last part of the folder."""
        return self.folder.resolve().name

    @property
    def facts(self) -> Row:
        """What was known at the last start."""
        return self.starts[-1] if self.starts else {}

    @property
    def status(self) -> str:
        """One of finished, interrupted, failed, unfinished."""
        if self.ended is not None:
            return str(self.ended["status"])
        return "finished" if self.has_model and not self.starts else "unfinished"

    @property
    def last_step(self) -> Row:
        """The newest row of a step; empty before the first."""
        return self.steps[-1] if self.steps else {}

    @property
    def final(self) -> Row:
        """The newest validation, the one over the most tokens; empty without any."""
        finals = [row for row in self.validations if row.get("final")]
        return (finals or list(self.validations) or [{}])[-1]

    @property
    def elapsed_s(self) -> float:
        """Seconds of training, those before a resume included."""
        return float(self.last_step.get("elapsed_s", 0.0))


def read_run(folder: Path) -> RunRecord:
    """Read a run's folder.

    Raises:
        DataError: it is no run's folder, or a file in it is damaged.
    """
    if not (folder / "config.toml").is_file() and not (folder / "metrics.jsonl").is_file():
        raise DataError(
            f"{folder} is no run: it has neither config.toml nor metrics.jsonl; name a folder "
            "that `llmlab pretrain --out` wrote"
        )
    metrics, journal = _rows(folder / "metrics.jsonl"), _rows(folder / "journal.jsonl")
    begun = [number for number, row in enumerate(journal) if row.get("event") == "started"]
    ends = [row for row in journal[begun[-1] if begun else 0 :] if row.get("event") == "ended"]
    return RunRecord(
        folder=folder,
        settings=_settings(folder / "config.toml"),
        steps=[row for row in metrics if "loss" in row],
        validations=[row for row in metrics if "loss" not in row and "step" in row],
        samples=_rows(folder / "samples.jsonl"),
        starts=[journal[number] for number in begun],
        ended=ends[-1] if ends else None,
        notes=[row["note"] for row in journal if "note" in row],
        checkpoints=sorted(
            int(path.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-[0-9]*")
        ),
        has_model=(folder / "model").is_dir(),
    )


def _rows(path: Path) -> list[Row]:
    return read_metrics(path) if path.is_file() else []


def _settings(path: Path) -> Row:
    if not path.is_file():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not TOML: {error}; restore it or take it away") from error
