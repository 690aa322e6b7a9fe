"""What `llmlab import gguf` is told. Not here: the import (gguf_import.py); no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


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
