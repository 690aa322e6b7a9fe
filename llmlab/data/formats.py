"""How one file becomes texts: plain text, HTML, JSON records, parquet, each also gzipped.

Not here: which files are read (documents.py). Everything is UTF-8; nothing is guessed.
"""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, cast

from llmlab.data.markup import html_text
from llmlab.errors import DataError

MAX_DOCUMENT_BYTES = 16 * 2**20
"""A longer plain text is cut at line ends into documents of about this size."""

_HTML = frozenset({".htm", ".html", ".xhtml"})
_JSON_LINES = frozenset({".jsonl", ".ndjson"})
_BINARY_STARTS = (b"%PDF-", b"\x1f\x8b", b"PK\x03\x04")


def read_file(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (place, text) for every document in a file.

    Raises:
        DataError: the file cannot be read, is not UTF-8, or has records of an unknown shape.
    """
    kind = _kind(path)
    if kind == ".parquet":
        yield from import_module("llmlab.data.parquet").read_parquet(path)
        return
    try:
        with _open(path) as file:
            if kind in _JSON_LINES:
                yield from _json_lines(path, file)
            elif kind == ".json":
                yield from _json(path, file)
            elif kind in _HTML:
                yield str(path), html_text(_decode(file.read(), path))
            else:
                yield from _plain(path, file)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"cannot read {path}: {error}; check that it is complete and readable"
        ) from error


def is_binary(path: Path) -> bool:
    """Tell whether a file is something other than text, from its first 8 KiB."""
    if _kind(path) == ".parquet":
        return False
    try:
        with _open(path) as file:
            head = file.read(8192)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return False  # a damaged .gz is an error when it is read, not a file to leave out
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}; check its permissions") from error
    return b"\0" in head or head.startswith(_BINARY_STARTS)


def record_text(record: Any, place: str) -> str:
    """Return the text of a record of one of the three known shapes.

    They are `text`; `messages`, whose contents are joined by blank lines; `prompt` followed by
    `completion`.

    Raises:
        DataError: the record has another shape; names the place and the keys found.
    """
    match record:
        case {"text": str(text)}:
            return text
        case {"messages": [*messages]} if all(_has_content(message) for message in messages):
            return "\n\n".join(message["content"] for message in messages)
        case {"prompt": str(prompt), "completion": str(completion)}:
            return prompt + completion
    found = sorted(record) if isinstance(record, Mapping) else type(record).__name__
    raise DataError(
        f"{place} has {found}; a record needs the key 'text', or 'messages', "
        "or 'prompt' and 'completion', with strings"
    )


def _has_content(message: Any) -> bool:
    return isinstance(message, Mapping) and isinstance(message.get("content"), str)


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    return path.with_suffix("").suffix.lower() if suffix == ".gz" else suffix


def _open(path: Path) -> BinaryIO:
    if path.suffix.lower() == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    return path.open("rb")


def _plain(path: Path, file: BinaryIO) -> Iterator[tuple[str, str]]:
    offset = 0
    while block := file.read(MAX_DOCUMENT_BYTES):
        if len(block) == MAX_DOCUMENT_BYTES:
            block += file.readline()
        place = str(path) if offset == 0 else f"{path}#byte{offset}"
        yield place, _decode(block, path, offset)
        offset += len(block)


def _json_lines(path: Path, file: BinaryIO) -> Iterator[tuple[str, str]]:
    offset = 0
    for number, line in enumerate(file, start=1):
        if line.strip():
            place = f"{path}:{number}"
            yield place, record_text(_parse(_decode(line, path, offset), path, number), place)
        offset += len(line)


def _json(path: Path, file: BinaryIO) -> Iterator[tuple[str, str]]:
    """Read a list of records, or one record a line; other JSON is plain text."""
    first = file.readline()
    file.seek(0)
    if _is_object(first):
        yield from _json_lines(path, file)
        return
    text = _decode(file.read(), path)
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if isinstance(value, list) and value and isinstance(value[0], dict):
        for number, record in enumerate(value):
            yield f"{path}#{number}", record_text(record, f"{path} record {number}")
    else:
        yield str(path), text


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _parse(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} line {number} is not JSON ({error.msg} at column {error.colno}): "
            f"{line[:60]!r}; each line must be one JSON object"
        ) from error


def _decode(data: bytes, path: Path, offset: int = 0) -> str:
    try:
        return data.decode("utf-8-sig" if offset == 0 else "utf-8")
    except UnicodeDecodeError as error:
        # With a byte order mark the decoder counts from after it.
        mark = 3 if offset == 0 and data.startswith(b"\xef\xbb\xbf") else 0
        at = error.start + mark
        raise DataError(
            f"{path} is not UTF-8: byte 0x{data[at]:02x} at offset {offset + at}; "
            f"convert it, for example: iconv -f latin1 -t utf-8 {path} > fixed.txt"
        ) from error
