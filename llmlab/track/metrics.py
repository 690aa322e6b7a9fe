"""metrics.jsonl: one JSON object a line, appended and flushed, so a killed run loses nothing.

Not here: how the numbers look on a terminal (progress.py), other places for them (trackers.py).
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from llmlab.errors import DataError
from llmlab.track.trackers import Tracker


class MetricsLog:
    """Append rows to a metrics.jsonl file.

    Args:
        path: the file; its folder must exist. An existing file is continued.
        trackers: get each row after the file has it; whoever opened them closes them.
    """

    def __init__(self, path: Path | str, trackers: Iterable[Tracker] = ()) -> None:
        self._file = Path(path).open("a", encoding="utf-8")  # noqa: SIM115 (closed by close)
        self._trackers = tuple(trackers)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row and flush it."""
        self._file.write(json.dumps(dict(row), ensure_ascii=False) + "\n")
        self._file.flush()
        for tracker in self._trackers:
            tracker.write(row)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """Read every row; a last line cut short by a kill is left out.

    Raises:
        DataError: the file is missing, or a line before the last is not JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist; a run writes it into its --out folder")
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise DataError(f"{path} line {number} is not JSON: {line[:60]!r}") from error
    return rows
