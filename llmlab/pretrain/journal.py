"""journal.jsonl of a run: when it was started, on what, what it said, how it ended.

metrics.jsonl has the numbers of each step; this has the rest that a report card needs, and it has
it from the first second, so that a run which is killed can be reported too. Rows:

    {"event": "started", "run_id", "time", "device", "model", "num_parameters", ...}
    {"note": "computing in bfloat16: ..."}
    {"event": "ended", "status": "finished" | "interrupted" | "failed", "time", ...}

Not here: what the report says (report/).
"""

import os
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from llmlab.errors import LabError
from llmlab.track import MetricsLog, OnProgress, read_metrics
from llmlab.training.distributed import is_first

_LIVE = ("step", "loss", "bits_per_byte", "lr", "tok_per_s", "mfu", "eta")
"""What people watch, in the order of the live line."""


class Journal:
    """The journal of one start of a run, and the on_progress that fills it.

    Leaving the block with an error writes that the run failed, and why.

    Args:
        out: folder of the run, which exists. A journal in it is continued, by rank 0.
        on_progress: gets each row too, the numbers of a step cut to those people watch.
    """

    def __init__(self, out: Path, on_progress: OnProgress) -> None:
        path = out / "journal.jsonl" if is_first() else Path(os.devnull)
        starts = read_metrics(path) if path.is_file() else []
        self.run_id: str = next(
            (row["run_id"] for row in starts if "run_id" in row), uuid.uuid4().hex[:16]
        )
        """The same when a run is resumed."""

        self._log = MetricsLog(path)
        self._on_progress = on_progress
        self._validated: dict[str, Any] = {}

    def started(self, facts: Mapping[str, Any]) -> None:
        """Write what the run is about to do."""
        self._log.write({"event": "started", "run_id": self.run_id, "time": _now(), **facts})

    def ended(self, status: str, facts: Mapping[str, Any]) -> None:
        """Write how it came out."""
        self._log.write({"event": "ended", "status": status, "time": _now(), **facts})

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Pass a row on; keep what it says in words, and the bits per byte for the live line."""
        if "bits_per_byte" in row:
            self._validated = {"bits_per_byte": row["bits_per_byte"]}
        if row.keys() == {"note"}:
            self._log.write({"note": row["note"]})
        if "note" not in row and "loss" in row:
            known = {**row, **self._validated}
            row = {key: known[key] for key in _LIVE if key in known}
        self._on_progress(row)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception):
            name = type(error).__name__
            words = str(error) if isinstance(error, LabError) else f"{name}: {error}"
            self.ended("failed", {"kind": name, "error": words})
        self._log.close()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
