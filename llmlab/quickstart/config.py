"""QuickstartConfig: how long, where to, and nothing else to decide."""

from dataclasses import dataclass
from pathlib import Path

from llmlab.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """Train, serve, finetune, retrieve and evaluate once; write a report.

    Everything runs on this machine: the text is the Python standard library's own source.
    """

    out: Path
    """Folder for everything the run leaves behind."""
    minutes: float = 3.0
    """Minutes of pretraining; the other stages together take about as long again."""
    source: str = "stdlib"
    """What to pretrain on: a built-in name, a file, a folder or a glob."""
    vocab_size: int = 8192
    """Entries of the tokenizer's vocabulary, special tokens included."""
    seed: int = 0
    """Seed of every random choice."""
    overwrite: bool = False
    """Replace what an earlier run left in `out`."""

    def __post_init__(self) -> None:
        if not 0 < self.minutes <= 24 * 60:
            raise ConfigError(f"minutes={self.minutes} is not in (0, 1440]; try --minutes 3")
