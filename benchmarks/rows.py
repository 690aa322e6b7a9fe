"""Rows of benchmarks/results/NAME.jsonl: what was measured, on what, at which commit."""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def append_row(name: str, values: dict[str, Any], *, device: str | None = None) -> Path:
    """Append one row, with commit, date, device and versions in front, and return the file."""
    path = RESULTS / f"{name}.jsonl"
    row = {
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "device": device or processor(),
        "python": platform.python_version(),
        "torch": version("torch"),
        **values,
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    return path


def read_rows(name: str) -> list[dict[str, Any]]:
    """Read every row of one benchmark, oldest first."""
    text = (RESULTS / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def commit() -> str:
    """Return the short commit, with `+` when tracked files differ from it."""
    here = Path(__file__).parent
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True
    )
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", ":!results"], cwd=here)
    return head.stdout.strip() + ("+" if changed.returncode else "")


def processor() -> str:
    """Return the processor's name and the number of its cores this process may use."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        flags = next((line for line in lines if line.startswith("flags")), "")
        extras = [flag for flag in ("avx2", "avx512_bf16", "amx_bf16") if flag in flags.split()]
        name = f"{names[0] if names else name} ({', '.join(extras)})"
    return f"{name}, {len(os.sched_getaffinity(0))} cores"
