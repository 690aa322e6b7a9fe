"""`llmlab import gguf`: show the progress, name what came out."""

import sys
from dataclasses import dataclass
from pathlib import Path

from llmlab.model.folder import load_config
from llmlab.model.gguf_config import ImportGgufConfig
from llmlab.model.gguf_import import import_gguf
from llmlab.track import Progress


@dataclass(frozen=True)
class Imported:
    """What `import gguf` made."""

    architecture: str
    num_parameters: int
    dtype: str
    out: Path

    def __str__(self) -> str:
        size = f"{self.num_parameters / 1e6:.1f}M parameters"
        return f"imported {self.architecture}, {size}, {self.dtype}\n{self.out}"


def run(config: ImportGgufConfig) -> Imported:
    """Import a GGUF file into a model folder."""
    progress = Progress(sys.stderr, "import")
    out = import_gguf(
        config.file,
        config.out,
        dtype=config.dtype,
        overwrite=config.overwrite,
        on_progress=progress,
    )
    progress.close()
    shape = load_config(out)
    return Imported(shape.architecture, shape.num_parameters, config.dtype, out)
