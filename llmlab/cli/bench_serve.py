"""`llmlab bench serve`: show the progress, print the table, name the results folder."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmlab.serve.bench.config import BenchServeConfig
from llmlab.serve.bench.report import as_json, table
from llmlab.serve.bench.run import bench
from llmlab.track import Progress


@dataclass(frozen=True)
class Benched:
    """What `bench serve` found."""

    servers: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    """One for each load and server; the folder has every round as well."""
    text: str
    """The table for people, and the folder on the last line."""
    out: Path | None

    def __str__(self) -> str:
        return self.text


def run(config: BenchServeConfig) -> Benched:
    """Measure servers."""
    write = None if config.out is None else _writer()  # told before, not after, that it cannot draw
    progress = Progress(sys.stderr, "bench")
    try:
        results = bench(config, on_progress=progress)
    finally:
        progress.close()
    text = table(results)
    if write is not None and config.out is not None:
        write(results, config.out, overwrite=config.overwrite)
        text += f"\n{config.out}"
    found = as_json(results)
    return Benched(found["servers"], found["rows"], text, config.out)


def _writer() -> Callable[..., None]:
    from llmlab.serve.bench.folder import write_folder

    return write_folder
