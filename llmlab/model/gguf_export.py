"""A model folder becomes the tensors of a GGUF file, read and written one at a time.

Which tensor goes where, in which number format, and the file around them. Matrices take the format
asked for. Norms, biases, learned positions and routers stay F32, as llama.cpp's own converter keeps
them, and a matrix whose rows Q8_0's blocks of 32 do not fill becomes F16. A tied head is left out:
llama.cpp takes the token embedding for it.

Not here: the metadata (gguf_metadata.py), names (gguf_names.py), number formats
(gguf_quantize.py), the tokenizer (llmlab/tokenizers/files/gguf_vocab.py).
Source: the GGUF specification (github.com/ggml-org/ggml, docs/gguf.md).
"""

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from llmlab.errors import ModelError
from llmlab.model.build import build_model
from llmlab.model.config import ModelConfig
from llmlab.model.expert_names import parted_experts
from llmlab.model.gguf_blocks import FORMATS, BlockFormat
from llmlab.model.gguf_metadata import gguf_architecture
from llmlab.model.gguf_names import ROPE_FACTORS, gguf_layout, gguf_name, gguf_shape, is_stacked
from llmlab.model.gguf_quantize import encoded, format_named
from llmlab.model.gguf_rope import rope_factors
from llmlab.model.safetensors_files import StoredTensor, read_tensors
from llmlab.model.weights import model_tensors
from llmlab.tokenizers.files.gguf_writer import Value, gguf_head
from llmlab.track import OnProgress, silent

FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}
"""The formats that are written, and `general.file_type` of such a file."""

_ALIGNMENT = 32
_ALWAYS_F32 = ("position_embd.weight", "ffn_gate_inp.weight")
_NUMBERS = {block_format.name: number for number, block_format in FORMATS.items()}


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the file to be.

    Args:
        name: GGUF's.
        shape: rows first, as in the file.
        block_format: how its numbers are stored.
    """

    name: str
    shape: tuple[int, ...]
    block_format: BlockFormat

    @property
    def num_bytes(self) -> int:
        """Bytes of the numbers."""
        blocks = math.prod(self.shape) // self.block_format.block_len
        return blocks * self.block_format.block_bytes


class GgufExport:
    """A model folder on its way into a GGUF file.

    Args:
        folder: the model folder.
        config: its config.
        type_name: F32, F16, BF16 or Q8_0.

    Attributes:
        tensors: what the file will hold, in its order.

    Raises:
        ModelError: llama.cpp does not compute this model, or the weights do not fit the config.
    """

    def __init__(self, folder: Path | str, config: ModelConfig, type_name: str) -> None:
        self._architecture = gguf_architecture(config)
        self._heads = config.num_attention_heads, config.num_key_value_heads
        self._factors = rope_factors(config)
        with torch.device("meta"):
            wanted = parted_experts(build_model(config).state_dict())
        self._places = self._grouped(model_tensors(folder, config, wanted))
        self.tensors = [
            self._planned(name, places, type_name) for name, places in self._places.items()
        ]
        if self._factors is not None:
            shape = tuple(self._factors.shape)
            self.tensors.append(PlannedTensor(ROPE_FACTORS, shape, format_named("F32")))

    def write(
        self, path: Path, metadata: Mapping[str, Value], *, on_progress: OnProgress = silent
    ) -> None:
        """Write the file; memory stays within one tensor.

        Args:
            path: belongs to the caller.
            metadata: all keys of the file.
            on_progress: told the tensors written so far.

        Raises:
            ModelError: a number does not fit the format.
            OutputError: a key cannot be written as GGUF.
        """
        head = gguf_head(metadata, num_tensors=len(self.tensors)) + self._infos()
        with path.open("wb") as file:
            _write_padded(file, head)
            for done, (tensor, planned) in enumerate(zip(self._read(), self.tensors, strict=True)):
                for part in encoded(tensor, planned.block_format, planned.name):
                    file.write(part.data)
                _write_padded(file, b"")
                on_progress({"tensors": f"{done + 1}/{len(self.tensors)}"})

    def _grouped(self, found: Mapping[str, StoredTensor]) -> dict[str, list[StoredTensor]]:
        """Return what each tensor of the file is made of: one parameter, or one of each expert."""
        groups: dict[str, list[StoredTensor]] = {}
        for parameter, place in found.items():
            name = gguf_name(parameter, self._architecture)
            if name is None:
                raise ModelError(
                    f"{parameter} has no name in a GGUF file of {self._architecture}; the model is "
                    "a variant that llama.cpp does not compute"
                )
            groups.setdefault(name, []).append(place)
        return groups

    def _planned(self, name: str, places: list[StoredTensor], type_name: str) -> PlannedTensor:
        shape = gguf_shape(places[0].shape, name, self._architecture)
        block_format = format_named(type_name)
        if len(shape) < 2 or name.endswith(_ALWAYS_F32):
            block_format = format_named("F32")
        elif shape[-1] % block_format.block_len:
            block_format = format_named("F16")
        stacked = (len(places), *shape) if is_stacked(name) else shape
        return PlannedTensor(name, stacked, block_format)

    def _infos(self) -> bytes:
        infos, start = [], 0
        for planned in self.tensors:
            name = planned.name.encode()
            dims = planned.shape[::-1]  # the file counts from the innermost dimension
            infos += [
                struct.pack("<Q", len(name)),
                name,
                struct.pack(f"<I{len(dims)}Q", len(dims), *dims),
                struct.pack("<IQ", _NUMBERS[planned.block_format.name], start),
            ]
            start += -(-planned.num_bytes // _ALIGNMENT) * _ALIGNMENT
        return b"".join(infos)

    def _read(self) -> Iterator[Tensor]:
        for name, places in self._places.items():
            parts = [tensor for _, tensor in read_tensors(dict(enumerate(places)))]
            whole = torch.stack(parts) if is_stacked(name) else parts[0]
            yield gguf_layout(whole, name, self._architecture, self._heads)
        if self._factors is not None:
            yield self._factors


def _write_padded(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.write(bytes(-file.tell() % _ALIGNMENT))
