"""TensorBoard event files in `tensorboard/` of the run's folder: one curve a key.

`tensorboard --logdir RUN` shows them. Not here: pictures, histograms, graphs.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from llmlab.track.trackers import numbers


class TensorBoardTracker:
    """Writes one event file for each start of a run.

    Args:
        folder: of the run.
        run_id: not used; the folder tells runs apart.
        settings: not used; config.toml holds them.
    """

    def __init__(self, folder: Path, run_id: str, settings: Mapping[str, Any]) -> None:
        self._writer = EventFileWriter(str(folder / "tensorboard"))
        self._begun = False

    def write(self, row: Mapping[str, Any]) -> None:
        """Add one point to the curve of each number in the row."""
        step = int(row["step"])
        if not self._begun:
            # A resumed run goes back to its checkpoint: points from here on in older files of the
            # folder were lost with the process, and TensorBoard hides them.
            start = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(wall_time=time.time(), step=step, session_log=start))
            self._begun = True
        values = [Summary.Value(tag=key, simple_value=n) for key, n in numbers(row).items()]
        self._writer.add_event(
            Event(wall_time=time.time(), step=step, summary=Summary(value=values))
        )

    def close(self) -> None:
        """Write out what is left."""
        self._writer.close()
