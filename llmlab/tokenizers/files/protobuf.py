"""Read one protobuf message: numbered fields of four wire types.

Enough for SentencePiece's files, without a schema: the caller says what type a field should have.
Not here: groups and packed fields (those files have none), writing.

Source: https://protobuf.dev/programming-guides/encoding.
"""

import struct
from collections.abc import Iterator
from typing import NoReturn

from llmlab.errors import TokenizerError

_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10


class Message:
    """The fields of one message; of a field given twice the last one counts.

    Args:
        data: the encoded message.

    Raises:
        TokenizerError: it is no protobuf message, or cut short.
    """

    def __init__(self, data: bytes) -> None:
        self._fields: dict[int, list[int | bytes]] = {}
        for field, content in _fields(data):
            self._fields.setdefault(field, []).append(content)

    def number(self, field: int, default: int) -> int:
        """Return a varint: an integer, an enumeration or a truth value."""
        content = self._fields.get(field, [default])[-1]
        return content if isinstance(content, int) else _refuse(field)

    def real(self, field: int, default: float) -> float:
        """Return a 32-bit float."""
        if field not in self._fields:
            return default
        content = self.content(field)
        return struct.unpack("<f", content)[0] if len(content) == 4 else _refuse(field)

    def content(self, field: int) -> bytes:
        """Return a field of bytes, empty when it is not there."""
        contents = self.contents(field)
        return contents[-1] if contents else b""

    def contents(self, field: int) -> list[bytes]:
        """Return every occurrence of a field of bytes, in order."""
        found = self._fields.get(field, [])
        return [content if isinstance(content, bytes) else _refuse(field) for content in found]

    def text(self, field: int, default: str) -> str:
        """Return a string, the default when it is empty or not there."""
        try:
            return self.content(field).decode() or default
        except UnicodeDecodeError as error:
            raise TokenizerError(f"field {field} is not UTF-8; the file is damaged") from error


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (field number, value): an int for a varint, else the bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        field, wire_type = key >> 3, key & 7
        if wire_type == _VARINT:
            number, at = _varint(data, at)
            yield field, number
            continue
        if wire_type == _DELIMITED:
            size, at = _varint(data, at)
        elif wire_type in (_FIXED32, _FIXED64):
            size = 4 if wire_type == _FIXED32 else 8
        else:
            raise TokenizerError(
                f"wire type {wire_type} at byte {at} is not used in such files; it is no "
                "SentencePiece model, or damaged"
            )
        if size > len(data) - at:
            raise TokenizerError(
                f"field {field} should have {size} bytes and {len(data) - at} are left; the file "
                "is damaged or cut short"
            )
        yield field, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a little-endian number of seven bits a byte, and where it ends."""
    number = 0
    for place, byte in enumerate(data[at : at + _MAX_VARINT_BYTES]):
        number |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return number, at + place + 1
    raise TokenizerError(f"the number at byte {at} does not end; the file is damaged or cut short")


def _refuse(field: int) -> NoReturn:
    raise TokenizerError(f"field {field} has another type than in SentencePiece models")
