"""What `llmlab export gguf` is told. Not here: the export (gguf.py); no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ExportGgufConfig:
    """Write a model folder as one GGUF file, which llama.cpp and what builds on it load."""

    model: Path
    """The model folder."""
    out: Path
    """Where the .gguf file shall appear."""
    type: Literal["f32", "f16", "bf16", "q8_0"] = "f16"
    """How matrices are stored: 4 bytes a parameter, 2 (f16, bf16), or 1.06 (q8_0)."""
    name: str | None = None
    """The model's name in the file; that of its folder if left out."""
    overwrite: bool = False
    """Replace an existing file."""
