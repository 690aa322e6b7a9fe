"""The processes that this one has started, as the operating system lists them."""

import os
from pathlib import Path


def children(of: int | None = None) -> list[int]:
    """Return the ids of the worker processes of a model whose parent is `of`; this one if None."""
    parent = os.getpid() if of is None else of
    return [pid for pid in _processes() if _parent(pid) == parent and _is_worker(pid)]


def is_running(pid: int) -> bool:
    """Tell whether a process runs; a dead one that nobody has asked after does not."""
    return _state(pid) not in ("", "Z", "X")


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _is_worker(pid: int) -> bool:
    return b"llmlab.serve.rank_worker" in _read(pid, "cmdline")


def _parent(pid: int) -> int:
    fields = _fields(pid)
    return int(fields[1]) if fields else 0


def _state(pid: int) -> str:
    fields = _fields(pid)
    return fields[0] if fields else ""


def _fields(pid: int) -> list[str]:
    """Return what stands behind the name in /proc/PID/stat: state, parent, ..."""
    return _read(pid, "stat").decode().rpartition(")")[2].split()


def _read(pid: int, name: str) -> bytes:
    try:
        return (Path("/proc") / str(pid) / name).read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
