"""The settings of `llmlab tokenizer train`, `encode` and `decode`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

SplitName = Literal["gpt2", "cl100k", "llama3", "qwen2", "o200k", "smollm"]
"""Names of the ways to cut text into pre-tokens (splits.py has the expressions)."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Learn a byte-level BPE vocabulary from text."""

    sources: Annotated[tuple[str, ...], tyro.conf.Positional]
    """What to read: files, folders, globs, `hf:OWNER/DATASET[:CONFIG][:SPLIT]`, or a built-in name
    (`stdlib`, `tinyshakespeare`, `names`)."""

    out: Path
    """Tokenizer folder to write."""

    overwrite: bool = False
    """Replace `out` when it already exists."""

    vocab_size: int = 8192
    """Tokens in all: 256 bytes, the special tokens, and the merges."""

    algorithm: Literal["bpe"] = "bpe"
    """How the vocabulary is learnt."""

    split: SplitName = "qwen2"
    """How text is cut into the pieces that merges never cross."""

    limit_mb: float | None = None
    """Stop reading after this many MB (10^6 bytes of UTF-8); unset reads everything."""


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """Turn text on stdin into token ids on stdout."""

    tokenizer: Path
    """Tokenizer folder (or a model folder, which holds one)."""

    allow_special: bool = False
    """Read special tokens in the text as such; otherwise they are plain text."""


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """Turn token ids on stdin (separated by spaces, commas or newlines) into text on stdout."""

    tokenizer: Path
    """Tokenizer folder (or a model folder, which holds one)."""

    skip_special_tokens: bool = False
    """Leave special tokens out of the text."""
