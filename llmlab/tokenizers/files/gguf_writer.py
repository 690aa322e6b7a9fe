"""The head of a GGUF file: header and metadata, written.

Not here: which keys a file has (gguf_vocab.py for those of a tokenizer), tensors (an exporter of
models writes their infos and data behind the head), reading (llmlab/model/gguf.py).

Layout, little endian: `GGUF`, version 3, number of tensors, number of metadata pairs; then each
pair: key, type of the value, value. A string is its length in bytes (u64) and its UTF-8; an array
is the type of its items, their number (u64) and the items.
Source: the GGUF specification (github.com/ggml-org/ggml, docs/gguf.md).
"""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from llmlab.errors import OutputError
from llmlab.outputs import whole_file

MAGIC = b"GGUF"
VERSION = 3

NUMBER_TYPES: dict[int, str] = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4",
    10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
"""Type numbers of the numbers in metadata, as numpy names them."""

BOOL_TYPE, STRING_TYPE, ARRAY_TYPE = 7, 8, 9
"""Type numbers of the other values."""

_TYPE_OF = {np.dtype(name): number for number, name in NUMBER_TYPES.items()} | {
    np.dtype(bool): BOOL_TYPE
}

Value = bool | int | float | str | np.generic | np.ndarray | Sequence[str]
"""A value of the metadata: Python's int is written as u32 and float as f32, the types that readers
expect of nearly every key; numpy's numbers and arrays as what they are."""


def write_gguf(path: Path | str, metadata: Mapping[str, Value]) -> None:
    """Write a file that has metadata and no tensors, whole or not at all.

    Args:
        path: where the file shall appear; one that is there is replaced.
        metadata: key to value, in the order of the file.

    Raises:
        OutputError: a value cannot be written as GGUF, the disk is full, or the folder cannot be
            written.
    """
    head = gguf_head(metadata, num_tensors=0)
    with whole_file(path) as partial:
        partial.write_bytes(head)


def gguf_head(metadata: Mapping[str, Value], *, num_tensors: int) -> bytes:
    """Return a file up to the tensor infos.

    Raises:
        OutputError: a value cannot be written as GGUF.
    """
    head = [MAGIC, struct.pack("<IQQ", VERSION, num_tensors, len(metadata))]
    for key, value in metadata.items():
        head += [_string(key), *_typed(key, value)]
    return b"".join(head)


def _typed(key: str, value: Value) -> list[bytes]:
    """Return the type of a value, and the value."""
    if isinstance(value, str):
        return [_type(STRING_TYPE), _string(value)]
    if isinstance(value, bool | int | float | np.generic):
        number = _number(key, value)
        return [_type(_TYPE_OF[number.dtype]), number.tobytes()]
    if isinstance(value, np.ndarray):
        return [_type(ARRAY_TYPE), *_items(key, value)]
    if not all(isinstance(item, str) for item in value):
        raise OutputError(f"{key} is a list of other things than text; give a numpy array")
    size = struct.pack("<Q", len(value))
    return [_type(ARRAY_TYPE), _type(STRING_TYPE), size, *map(_string, value)]


def _number(key: str, value: bool | int | float | np.generic) -> np.generic:
    if isinstance(value, np.generic):
        number = value
    elif isinstance(value, bool):
        number = np.bool_(value)
    elif isinstance(value, float):
        number = np.float32(value)
    elif 0 <= value < 2**32:
        number = np.uint32(value)
    else:
        raise OutputError(f"{key}={value} is no u32; give np.int64 or np.uint64 of it")
    if number.dtype not in _TYPE_OF:
        raise OutputError(f"{key} has the dtype {number.dtype}, which GGUF does not have")
    return number


def _items(key: str, array: np.ndarray) -> list[bytes]:
    if array.ndim != 1 or array.dtype not in _TYPE_OF:
        raise OutputError(
            f"{key} has the shape {array.shape} and dtype {array.dtype}; a GGUF array has one "
            "dimension of numbers or booleans"
        )
    return [_type(_TYPE_OF[array.dtype]), struct.pack("<Q", len(array)), array.tobytes()]


def _type(number: int) -> bytes:
    return struct.pack("<I", number)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
