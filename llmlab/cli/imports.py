"""`llmlab import` and `llmlab import gguf`: show the progress, name what came out."""

import sys
from dataclasses import dataclass
from pathlib import Path

from llmlab.model.folder import load_config
from llmlab.model.gguf_import import import_gguf
from llmlab.model.hf_import import import_hf, source_folder
from llmlab.model.import_config import ImportConfig, ImportGgufConfig
from llmlab.model.weights import stored_dtype
from llmlab.outputs import check_free
from llmlab.track import Progress


@dataclass(frozen=True)
class Imported:
    """What an import made."""

    source: str
    architecture: str
    num_parameters: int
    dtype: str
    out: Path

    def __str__(self) -> str:
        size = f"{self.num_parameters / 1e6:.1f}M parameters"
        return f"imported {self.architecture}, {size}, {self.dtype}\nfrom {self.source}\n{self.out}"


def folder(config: ImportConfig) -> Imported:
    """Import a Hugging Face model into a model folder."""
    check_free(config.out, overwrite=config.overwrite)  # before anything is fetched
    source = source_folder(config.source, config.revision)
    out = import_hf(source, config.out, dtype=config.dtype, overwrite=config.overwrite)
    commit = f" at {source.name}" if config.source.startswith("hf:") else ""
    return _imported(f"{config.source}{commit}", out)


def gguf(config: ImportGgufConfig) -> Imported:
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
    return _imported(str(config.file), out)


def _imported(source: str, out: Path) -> Imported:
    config = load_config(out)
    dtype = str(stored_dtype(out)).removeprefix("torch.")
    return Imported(source, config.architecture, config.num_parameters, dtype, out)
