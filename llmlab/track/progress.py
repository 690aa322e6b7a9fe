"""The progress line: one live line on a terminal, one plain line every few seconds when piped.

The keys are those of metrics.jsonl: `step 1200/5000  loss 3.142  lr 2.9e-4  38.1k tok/s  mfu 41%`.
"""

import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

_GAP = "  "

_UNITS = {"tok_per_s": "tok/s", "bits_per_byte": "bits/byte"}
"""Keys that are shown as a unit behind the number."""

OnProgress = Callable[[Mapping[str, Any]], None]
"""Called by long-running functions with the numbers of the moment."""


def silent(values: Mapping[str, Any]) -> None:
    """Show nothing."""


class Progress:
    """An OnProgress that writes to a stream.

    A row with the key `note` is a sentence of its own line; any other row is the live line.

    Args:
        stream: usually `sys.stderr`.
        title: word in front of each line, such as the stage.
        every_s: seconds between plain lines when the stream is not a terminal.
    """

    def __init__(self, stream: TextIO, title: str = "", every_s: float = 5.0) -> None:
        self._stream = stream
        self._title = f"{title}  " if title else ""
        self._live = stream.isatty()
        self._every_s = 0.1 if self._live else every_s
        self._last_s = float("-inf")
        self._width = 0
        self._pending = ""

    def __call__(self, values: Mapping[str, Any]) -> None:
        """Show one row, unless the last one was shown a moment ago."""
        if "note" in values:
            self.note(str(values["note"]))
            return
        self._pending = self._fitted(_cells(values))
        if time.monotonic() - self._last_s >= self._every_s:
            self._show()

    def note(self, text: str) -> None:
        """Write a sentence on a line of its own."""
        self.close()
        self._stream.write(f"{self._title}{text}\n")
        self._stream.flush()

    def close(self) -> None:
        """Show the last row, if it was held back, and end the live line."""
        if self._pending:
            self._show()
        if self._live and self._width:
            self._stream.write("\n")
            self._width = 0
        self._stream.flush()

    def _fitted(self, cells: list[str]) -> str:
        """One line no wider than the terminal, for a wrapped one cannot be erased.

        What does not fit goes: the title, then the cells before the last, which is the time left.
        """
        columns = self._columns()
        line = self._title + _GAP.join(cells)
        if len(line) > columns:
            while len(_GAP.join(cells)) > columns and len(cells) > 1:
                cells = [*cells[:-2], cells[-1]]
            line = _GAP.join(cells)
        return line

    def _columns(self) -> float:
        if not self._live:
            return math.inf
        try:
            return os.get_terminal_size(self._stream.fileno()).columns - 1
        except (OSError, ValueError):  # a terminal that is no file, or has no size
            return math.inf

    def _show(self) -> None:
        text, self._pending = self._pending, ""
        if self._live:
            self._stream.write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            self._stream.write(text + "\n")
        self._stream.flush()
        self._last_s = time.monotonic()


def format_row(values: Mapping[str, Any]) -> str:
    """Format a row of numbers as `key value` pairs, two spaces apart."""
    return _GAP.join(_cells(values))


def _cells(values: Mapping[str, Any]) -> list[str]:
    return [
        f"{_format(key, value)} {_UNITS[key]}" if key in _UNITS else f"{key} {_format(key, value)}"
        for key, value in values.items()
    ]


def _format(key: str, value: Any) -> str:
    duration = key == "eta" or (key.endswith("_s") and not key.endswith("per_s"))
    if duration and isinstance(value, int | float):
        minutes, seconds = divmod(round(value), 60)
        return f"{minutes}m{seconds:02d}s" if value >= 60 else f"{value:.1f}s"
    if isinstance(value, float):
        if key == "mfu":
            return f"{value:.0%}"
        if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e7):
            return f"{value:.1e}"
        return f"{value / 1000:.1f}k" if abs(value) >= 10_000 else f"{value:.4g}"
    if isinstance(value, int) and abs(value) >= 1_000_000:
        return f"{value / 1e6:.2f}M"
    return str(value)
