"""The settings of `llmlab pretrain report`. Torch-free."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from llmlab.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write the report card of a run again, or set several runs side by side."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of runs, finished or not."""

    out: Path | None = None
    """Folder for report.md and report.html; unset means the run's own, for one run."""

    overwrite: bool = False
    """Replace reports that `out` already holds."""

    def __post_init__(self) -> None:
        """Refuse what no report can be made of.

        Raises:
            ConfigError: names the field, its value and a value that works.
        """
        if not self.runs:
            raise ConfigError("no RUN given; name folders that `llmlab pretrain --out` wrote")
        if len(self.runs) > 1 and self.out is None:
            raise ConfigError(
                f"out is unset, and {len(self.runs)} runs have no folder in common; "
                "add --out FOLDER"
            )
