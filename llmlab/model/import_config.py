"""What `llmlab import` is told. Not here: the imports (hf_import.py, gguf_import.py); no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Turn a Hugging Face model into a model folder (`llmlab import gguf` reads GGUF files)."""

    source: Annotated[str, tyro.conf.Positional]
    """A folder that transformers wrote, or hf:OWNER/NAME to fetch one."""
    out: Path
    """Where the model folder shall appear."""
    dtype: Literal["stored", "float32", "bfloat16", "float16"] = "stored"
    """How the weights are stored: as they are in the source, 4 bytes a parameter, or 2."""
    revision: str | None = None
    """hf: the commit, tag or branch; the newest commit if left out. Name a commit to pin it."""
    overwrite: bool = False
    """Replace an existing output folder."""


@dataclass(frozen=True, kw_only=True)
class ImportGgufConfig:
    """Turn a GGUF file into a model folder."""

    file: Annotated[Path, tyro.conf.Positional]
    """The .gguf file."""
    out: Path
    """Where the model folder shall appear."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """How the weights are stored: 4 bytes a parameter, or 2 with the loss of a rounding."""
    overwrite: bool = False
    """Replace an existing output folder."""
