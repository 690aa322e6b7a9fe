"""How large the tiles of Triton kernels are: a table by operator, device, dtype and width.

The table is tiles.json, a row a line, written by `python -m llmlab.kernels.tune`; nothing is tuned
when a kernel runs. A row with `*` for a device or dtype, or width 0, is for all that have no row of
their own. What the numbers of a tile mean, the launchers say.
"""

import contextlib
import functools
import json
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor

TABLE = Path(__file__).with_name("tiles.json")


_trial: ContextVar[tuple[str, tuple[int, ...]] | None] = ContextVar("trial", default=None)


class Row(TypedDict):
    """One choice."""

    op: str
    device: str
    """`sm_90` for a Hopper GPU, `*` for any."""
    dtype: str
    """As `bfloat16`, or `*`."""
    width: int
    """Head dim, rounded up to a power of two; 0 for any."""
    tile: list[int]


def tile(op: str, x: Tensor, width: int = 0) -> tuple[int, ...]:
    """Return the tile of an operator.

    Args:
        op: as in the table.
        x: tells device and dtype.
        width: head dim, rounded up to a power of two, where the operator has one.
    """
    trial = _trial.get()
    if trial is not None and trial[0] == op:
        return trial[1]
    return _tile(op, device_name(x.device), dtype_name(x.dtype), width)


@contextlib.contextmanager
def on_trial(op: str, numbers: tuple[int, ...]) -> Iterator[None]:
    """Let an operator take these numbers, in this thread, whatever the table says."""
    token = _trial.set((op, numbers))
    try:
        yield
    finally:
        _trial.reset(token)


@functools.cache  # asked at every launch
def device_name(device: torch.device) -> str:
    """Return what the table calls a device: `sm_90` and the like, `cpu` where interpreted."""
    if device.type != "cuda":
        return device.type
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


def dtype_name(dtype: torch.dtype) -> str:
    """Return what the table calls a dtype."""
    return str(dtype).removeprefix("torch.")


def read_table() -> list[Row]:
    """Read every row."""
    return json.loads(TABLE.read_text(encoding="utf-8"))


def write_table(rows: Iterable[Row], path: Path = TABLE) -> None:
    """Write rows, sorted, a row a line; the file is whole or as it was."""
    ordered = sorted(rows, key=lambda row: (row["op"], row["device"], row["dtype"], row["width"]))
    lines = ",\n".join(json.dumps(row) for row in ordered)
    half_written = path.with_suffix(".new")
    half_written.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    half_written.replace(path)


@functools.cache
def _tile(op: str, device: str, dtype: str, width: int) -> tuple[int, ...]:
    fitting = [
        row
        for row in read_table()
        if row["op"] == op
        and row["device"] in (device, "*")
        and row["dtype"] in (dtype, "*")
        and row["width"] in (width, 0)
    ]
    if not fitting:
        raise LookupError(f"no tile for {op} of width {width} in {TABLE.name}")
    return tuple(max(fitting, key=_precision)["tile"])


def _precision(row: Row) -> tuple[bool, bool, bool]:
    return row["dtype"] != "*", row["device"] != "*", row["width"] != 0
