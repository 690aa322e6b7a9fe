"""The settings of `llmlab data pack`, and the ways to lay documents into windows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

Packing = Literal["stream", "best-fit"]
"""`stream`: windows cut from the text end to end; `best-fit`: documents placed whole, with some
padding."""


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """Tokenize sources into memory-mapped shards."""

    sources: Annotated[tuple[str, ...], tyro.conf.Positional]
    """What to read: files, folders, globs, `hf:OWNER/DATASET[:CONFIG][:SPLIT]`, or a built-in name
    (`stdlib`, `tinyshakespeare`, `names`)."""

    tokenizer: Path
    """Tokenizer folder (or a model folder, which holds one)."""

    out: Path
    """Shards folder to write."""

    overwrite: bool = False
    """Replace `out` when it already exists."""

    val_fraction: float = 0.02
    """Share of the documents held out for validation, 0 to 0.5."""

    shard_tokens: int = 2**27
    """Tokens in one shard file; the last one is shorter."""

    num_threads: int | None = None
    """Threads that tokenize; unset means one a core."""
