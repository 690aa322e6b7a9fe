"""A GGUF file, read: header, metadata and tensors, memory-mapped.

Not here: what the metadata mean for a model (gguf_import.py), and how the numbers of a tensor are
stored (gguf_blocks.py). Versions 2 and 3, little endian. A file is not trusted: every count and
length is checked against the bytes that are left before anything of that size is made.

Layout: `GGUF`, version, number of tensors, number of metadata pairs; the pairs (key, type, value);
the tensor infos (name, dimensions, type, offset); padding to `general.alignment`; the tensor data.
Source: the GGUF specification (github.com/ggml-org/ggml, docs/gguf.md).
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmlab.errors import ModelError
from llmlab.model.gguf_blocks import FORMATS, UNREAD_NAMES, BlockFormat, dequantize
from llmlab.tokenizers.files.gguf_writer import (
    ARRAY_TYPE,
    BOOL_TYPE,
    MAGIC,
    NUMBER_TYPES,
    STRING_TYPE,
)

_MAX_DIMS = 4
_MAX_NESTING = 4
_SMALLEST_INFO = 8 + 4 + 8 + 4 + 8  # bytes of a tensor info with an empty name and one dimension


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file.

    Args:
        name: as stored, such as `blk.0.attn_q.weight`.
        shape: rows first, as numpy and torch count (the file stores it reversed).
        block_format: how its numbers are stored.
        start: first byte in the file.
        num_bytes: length in the file.
    """

    name: str
    shape: tuple[int, ...]
    block_format: BlockFormat
    start: int
    num_bytes: int


class GgufFile:
    """An open GGUF file.

    Args:
        path: the file.

    Attributes:
        version: 2 or 3.
        metadata: key to value; numbers and strings as Python's, arrays of numbers as numpy arrays,
            other arrays as lists.
        tensors: name to TensorInfo, in file order.

    Raises:
        ModelError: the file is missing, is not a GGUF, is cut off, or holds a tensor type that
            is not read here.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ModelError(f"{self.path} is not a file; give the path of a .gguf file")
        with self.path.open("rb") as file:
            if file.read(4) != MAGIC:
                raise ModelError(f"{self.path} is not a GGUF file: it does not start with `GGUF`")
        self._bytes = np.memmap(self.path, np.uint8, mode="r")
        cursor = _Cursor(self._bytes, self.path)
        self.version = _version(cursor)
        num_tensors, num_pairs = cursor.count("tensors", _SMALLEST_INFO), cursor.count("pairs", 12)
        self.metadata = _read_pairs(cursor, num_pairs)
        infos = [_read_info(cursor) for _ in range(num_tensors)]
        self.tensors = _place(infos, cursor, _alignment(self.metadata, self.path))

    def array(self, name: str) -> np.ndarray:
        """Return one tensor as float32, rows first.

        Raises:
            ModelError: the file has no such tensor.
        """
        data = self.data(name)
        return dequantize(data, self.tensors[name].block_format).reshape(self.tensors[name].shape)

    def data(self, name: str) -> np.ndarray:
        """Return the bytes of one tensor as stored: uint8, one dimension, not copied.

        Raises:
            ModelError: the file has no such tensor.
        """
        if name not in self.tensors:
            raise ModelError(f"{self.path} has no tensor {name!r}; it has {len(self.tensors)}")
        info = self.tensors[name]
        return self._bytes[info.start : info.start + info.num_bytes]


class _Cursor:
    """Reads little-endian values one after another, never past the end."""

    def __init__(self, data: np.ndarray, path: Path) -> None:
        self._view = data.data
        self.path = path
        self.at = 4  # behind the magic

    @property
    def size(self) -> int:
        return len(self._view)

    def take(self, num_bytes: int, what: str) -> memoryview:
        """Return the next bytes, or raise when the file ends before them."""
        left = self.size - self.at
        if num_bytes > left:
            raise ModelError(
                f"{self.path} is cut off or damaged: {what} at byte {self.at} needs {num_bytes} "
                f"bytes, {left} are left; fetch the file again"
            )
        self.at += num_bytes
        return self._view[self.at - num_bytes : self.at]

    def number(self, form: str, what: str) -> Any:
        """Return one number of a struct format such as `<I`."""
        return struct.unpack(form, self.take(struct.calcsize(form), what))[0]

    def count(self, what: str, smallest_bytes: int) -> int:
        """Return a u64 count of things that take at least `smallest_bytes` each."""
        count = self.number("<Q", f"the number of {what}")
        if count * smallest_bytes > self.size - self.at:
            raise ModelError(
                f"{self.path} is cut off or damaged: it announces {count} {what} and has "
                f"{self.size - self.at} bytes left; fetch the file again"
            )
        return count

    def text(self, what: str) -> str:
        """Return a length-prefixed UTF-8 string; stray bytes become U+FFFD."""
        data = self.take(self.count(f"bytes of {what}", 1), what)
        return bytes(data).decode("utf-8", errors="replace")


def _version(cursor: _Cursor) -> int:
    version = cursor.number("<I", "the version")
    if version in (2, 3):
        return version
    if version & 0xFFFF == 0:
        raise ModelError(f"{cursor.path} is a big-endian GGUF; only little-endian files are read")
    raise ModelError(f"{cursor.path} is GGUF version {version}; versions 2 and 3 are read")


def _read_pairs(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.text("a metadata key")
        kind = cursor.number("<I", f"the type of {key}")
        metadata[key] = _read_value(cursor, kind, key, nesting=0)
    return metadata


def _read_value(cursor: _Cursor, kind: int, key: str, nesting: int) -> Any:
    if kind in NUMBER_TYPES:
        dtype = np.dtype(NUMBER_TYPES[kind])
        return np.frombuffer(cursor.take(dtype.itemsize, key), dtype)[0].item()
    if kind == BOOL_TYPE:
        return cursor.number("<B", key) != 0
    if kind == STRING_TYPE:
        return cursor.text(key)
    if kind == ARRAY_TYPE and nesting < _MAX_NESTING:
        return _read_array(cursor, key, nesting + 1)
    raise ModelError(f"{cursor.path}: metadata {key!r} has the unknown value type {kind}")


def _read_array(cursor: _Cursor, key: str, nesting: int) -> Any:
    kind = cursor.number("<I", f"the item type of {key}")
    if kind in NUMBER_TYPES or kind == BOOL_TYPE:
        dtype = np.dtype(NUMBER_TYPES.get(kind, "?"))
        count = cursor.count(f"items of {key}", dtype.itemsize)
        return np.frombuffer(cursor.take(count * dtype.itemsize, key), dtype).copy()
    read: Callable[[], Any]
    if kind == STRING_TYPE:
        smallest, read = 8, lambda: cursor.text(key)
    else:
        smallest, read = 12, lambda: _read_value(cursor, kind, key, nesting)
    return [read() for _ in range(cursor.count(f"items of {key}", smallest))]


def _read_info(cursor: _Cursor) -> TensorInfo:
    """Read one tensor info; its `start` still counts from the beginning of the tensor data."""
    name = cursor.text("a tensor name")
    num_dims = cursor.number("<I", f"the shape of {name}")
    if not 1 <= num_dims <= _MAX_DIMS:
        raise ModelError(f"{cursor.path}: tensor {name!r} has {num_dims} dimensions, not 1 to 4")
    shape = tuple(cursor.number("<Q", f"the shape of {name}") for _ in range(num_dims))[::-1]
    block_format = _format(cursor.number("<I", f"the type of {name}"), name, cursor.path)
    if shape[-1] % block_format.block_len:
        raise ModelError(
            f"{cursor.path}: rows of tensor {name!r} have {shape[-1]} values, not a multiple of "
            f"{block_format.name}'s block of {block_format.block_len}; the file is damaged"
        )
    num_bytes = math.prod(shape) // block_format.block_len * block_format.block_bytes
    start = cursor.number("<Q", f"the offset of {name}")
    return TensorInfo(name, shape, block_format, start, num_bytes)


def _format(number: int, name: str, path: Path) -> BlockFormat:
    if number not in FORMATS:
        known = ", ".join(block_format.name for block_format in FORMATS.values())
        raise ModelError(
            f"{path}: tensor {name!r} is stored as {UNREAD_NAMES.get(number, f'type {number}')}, "
            f"which is not read here; use a file in one of {known}"
        )
    return FORMATS[number]


def _alignment(metadata: dict[str, Any], path: Path) -> int:
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment > 1 << 20:
        raise ModelError(f"{path}: general.alignment={alignment!r} is not a usable alignment")
    return alignment


def _place(infos: list[TensorInfo], cursor: _Cursor, alignment: int) -> dict[str, TensorInfo]:
    data_start = -(-cursor.at // alignment) * alignment
    placed: dict[str, TensorInfo] = {}
    for info in infos:
        start = data_start + info.start
        if start + info.num_bytes > cursor.size:
            raise ModelError(
                f"{cursor.path} is cut off: tensor {info.name!r} ends at byte "
                f"{start + info.num_bytes}, the file has {cursor.size}; fetch the file again"
            )
        if info.name in placed:
            raise ModelError(f"{cursor.path}: tensor {info.name!r} stands twice; damaged file")
        placed[info.name] = TensorInfo(
            info.name, info.shape, info.block_format, start, info.num_bytes
        )
    return placed
