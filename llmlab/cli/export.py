"""`llmlab export gguf`: show the progress, name what came out."""

import sys
from dataclasses import dataclass

from llmlab.export.config import ExportGgufConfig
from llmlab.export.gguf import ExportResult, export_gguf
from llmlab.track import Progress


@dataclass(frozen=True)
class Exported(ExportResult):
    """What `export gguf` made."""

    def __str__(self) -> str:
        size = f"{self.num_parameters / 1e6:.1f}M parameters, {self.num_bytes / 1e6:.1f} MB"
        return f"exported {self.architecture}, {size}\n{self.out}"


def gguf(config: ExportGgufConfig) -> Exported:
    """Write a model folder as a GGUF file."""
    progress = Progress(sys.stderr, "export")
    result = export_gguf(config, on_progress=progress)
    progress.close()
    return Exported(**vars(result))
