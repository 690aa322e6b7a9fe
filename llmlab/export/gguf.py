"""A model folder as one GGUF file, tokenizer included, whole or not at all.

Not here: names, layouts and number formats (llmlab/model/gguf_export.py and its neighbours), the
tokenizer's keys (llmlab/tokenizers/files/gguf_vocab.py), the way back (`llmlab import gguf`).
"""

from dataclasses import dataclass
from pathlib import Path

from llmlab.export.config import ExportGgufConfig
from llmlab.model.folder import load_config
from llmlab.model.gguf_export import FILE_TYPES, GgufExport
from llmlab.model.gguf_metadata import config_metadata, gguf_architecture
from llmlab.outputs import check_free, whole_file
from llmlab.tokenizers import Tokenizer
from llmlab.tokenizers.files.gguf_vocab import gguf_metadata
from llmlab.tokenizers.files.gguf_writer import Value
from llmlab.track import OnProgress, silent

_QUANTIZATION_VERSION = 2  # of ggml's block layouts


@dataclass(frozen=True)
class ExportResult:
    """What an export wrote."""

    architecture: str
    """GGUF's name of it."""
    num_parameters: int
    """All parameters, a tied head counted once."""
    num_bytes: int
    """Size of the file."""
    out: Path
    """The file."""


def export_gguf(config: ExportGgufConfig, *, on_progress: OnProgress = silent) -> ExportResult:
    """Write a model folder as a GGUF file.

    Tensors pass one at a time: memory stays within the largest.

    Raises:
        ModelError: no model in the folder, one that llama.cpp does not compute, or a weight that
            the number format cannot hold.
        TokenizerError: llama.cpp cannot make the tokenizer's ids; the message says why.
        OutputError: `out` exists and `overwrite` is false, or the disk is full.
    """
    check_free(config.out, overwrite=config.overwrite)
    shape = load_config(config.model)
    tokenizer = Tokenizer.load(config.model)
    type_name = config.type.upper()
    architecture = gguf_architecture(shape)
    general: dict[str, Value] = {
        "general.architecture": architecture,
        "general.type": "model",
        "general.name": config.name or config.model.resolve().name,
        "general.file_type": FILE_TYPES[type_name],
    }
    if type_name == "Q8_0":
        general["general.quantization_version"] = _QUANTIZATION_VERSION
    export = GgufExport(config.model, shape, type_name)
    vocabulary = gguf_metadata(tokenizer, num_rows=shape.vocab_size)
    metadata = general | config_metadata(shape) | vocabulary
    with whole_file(config.out) as partial:
        export.write(partial, metadata, on_progress=on_progress)
    size = config.out.stat().st_size
    return ExportResult(architecture, shape.num_parameters, size, config.out)
