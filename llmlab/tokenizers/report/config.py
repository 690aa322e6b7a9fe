"""The settings of `llmlab tokenizer report`. Torch-free."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from llmlab.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Measure a tokenizer on text, beside others."""

    sources: Annotated[tuple[str, ...], tyro.conf.Positional]
    """What to read: files, folders, globs, `hf:OWNER/DATASET[:CONFIG][:SPLIT]`, or a built-in name
    (`stdlib`, `tinyshakespeare`, `names`)."""

    tokenizer: Path
    """Tokenizer folder (or a model folder, which holds one) the report is about."""

    against: tuple[Path, ...] = ()
    """Other tokenizer folders to set beside it."""

    out: Path | None = None
    """Folder to write report.html, report.md and report.json into; unset only prints."""

    overwrite: bool = False
    """Replace `out` when it already exists."""

    limit_mb: float | None = None
    """Stop reading after this many MB (10^6 bytes of UTF-8); unset reads everything."""

    def __post_init__(self) -> None:
        """Refuse values that no report can be made of.

        Raises:
            ConfigError: names the field, its value and a value that works.
        """
        if not self.sources:
            raise ConfigError("no SOURCE given; name files, folders or a built-in such as stdlib")
        if self.limit_mb is not None and self.limit_mb <= 0:
            raise ConfigError(f"limit_mb={self.limit_mb} is not positive; leave it out for all")
