"""Tensors in safetensors files: a folder's, read one at a time, and a file, written so.

A file is the length of its header (u64, little endian), the header (JSON: name to dtype, shape and
place, padded with spaces to a multiple of 8), and the numbers, one tensor behind the other. Large
models are several such files and `model.safetensors.index.json`, which says where each tensor is.
Not here: which tensors a model has (weights.py).
Format: https://github.com/huggingface/safetensors.
"""

import json
import struct
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llmlab.errors import ModelError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

FLOATS = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
}
"""The dtypes that are written, widest first, and safetensors' names of them."""

Key = TypeVar("Key", bound=Hashable)

_MAPPED_BYTES = 64 << 20  # the pages of a mapped file stay in memory until the mapping is let go


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies.

    Args:
        file: the safetensors file.
        name: its name there.
        shape: rows first.
        dtype: safetensors' name, such as `BF16`.
        num_bytes: its length in the file.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a model folder by their names, without reading a number.

    Raises:
        ModelError: no safetensors in the folder, or a file is missing or damaged.
    """
    found: dict[str, StoredTensor] = {}
    for path in _files(folder):
        found |= {tensor.name: tensor for tensor in _tensors_in(path)}
    return found


def read_tensors(places: Mapping[Key, StoredTensor]) -> Iterator[tuple[Key, Tensor]]:
    """Yield each key of `places` with its tensor, in the order of `places`.

    A tensor is a view of the mapped file: no memory is taken before its numbers are used, and it
    is given back once the tensors yielded near it are dropped.
    """
    for run in _runs(places):
        with safe_open(places[run[0]].file, framework="pt", device="cpu") as file:
            for key in run:
                yield key, file.get_tensor(places[key].name)


def write_tensors(
    path: Path, weights: Mapping[str, Tensor], *, dtype: torch.dtype | None = None
) -> None:
    """Write one file, a tensor at a time: a conversion takes the memory of one tensor.

    Args:
        path: the file; belongs to the caller.
        weights: name to tensor, on any device.
        dtype: of the numbers written; each tensor's own when None.
    """
    # Wide numbers first: then every tensor starts where its numbers may start in memory.
    names = sorted(weights, key=lambda name: -(dtype or weights[name].dtype).itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + num_bytes(weights[name], dtype)
        header[name] = {
            "dtype": FLOATS[dtype or weights[name].dtype],
            "shape": list(weights[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            tensor = weights[name].detach().to("cpu", dtype or weights[name].dtype).contiguous()
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def num_bytes(tensor: Tensor, dtype: torch.dtype | None) -> int:
    """Return the bytes of a tensor's numbers in `dtype`, in its own when None."""
    return tensor.numel() * (dtype or tensor.dtype).itemsize


def _files(folder: Path) -> list[Path]:
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        raise ModelError(_no_weights(folder))
    paths = [folder / name for name in sorted(set(_indexed(folder / INDEX)))]
    for path in paths:
        if not path.is_file():
            raise ModelError(f"{path} is missing though {INDEX} lists it; copy it again")
    return paths


def _indexed(path: Path) -> Iterable[str]:
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is no index of tensors ({error!r}); copy it again") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise ModelError(f"{path} names the file {name!r}, which is not beside it")
    return names


def _tensors_in(path: Path) -> Iterator[StoredTensor]:
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                part = file.get_slice(name)
                shape, dtype = tuple(part.get_shape()), part.get_dtype()
                yield StoredTensor(path, name, shape, dtype, _size(shape, dtype))
    except SafetensorError as error:
        raise ModelError(
            f"{path} is not a whole safetensors file ({error}); copy it again"
        ) from error


def _size(shape: tuple[int, ...], dtype: str) -> int:
    bits = int("".join(char for char in dtype.split("_")[0] if char.isdigit()) or 8)
    return torch.Size(shape).numel() * bits // 8


def _runs(places: Mapping[Key, StoredTensor]) -> Iterator[list[Key]]:
    """Cut the keys into runs that lie in one file and are mapped together."""
    run: list[Key] = []
    size = 0
    for key, place in places.items():
        if run and (place.file != places[run[0]].file or size >= _MAPPED_BYTES):
            yield run
            run, size = [], 0
        run.append(key)
        size += place.num_bytes
    if run:
        yield run


def _no_weights(folder: Path) -> str:
    for pattern in ("pytorch_model*.bin", "*.gguf", "*.pth"):
        other = sorted(folder.glob(pattern))
        if other:
            way = (
                f"run `llmlab import gguf {other[0]}`"
                if other[0].suffix == ".gguf"
                else "it is a pickle, which can run any code when it is opened; save the model "
                "with safe_serialization=True in transformers"
            )
            return f"{folder} has no {SINGLE}, only {other[0].name}; {way}"
    return f"{folder} has no {SINGLE} or {INDEX}; copy the whole model folder"
