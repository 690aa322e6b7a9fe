"""Sources of text, read one document at a time.

A source is a file, a folder, a glob, `hf:OWNER/DATASET[:CONFIG][:SPLIT]`, or a built-in name:
`stdlib` (the standard library's source files) or one of `llmlab.data.named`. A built-in name wins
over a file of the same name; write `./names` for the file. Not here: how one file is read
(formats.py), tokens (packing.py). Nothing is written, except downloads into the cache.
"""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from llmlab.data.formats import is_binary, read_file
from llmlab.data.named import NAMED, find_named
from llmlab.data.stdlib import read_source, stdlib_files, stdlib_root
from llmlab.errors import DataError, did_you_mean
from llmlab.track import OnProgress, silent


@dataclass(frozen=True, slots=True)
class Document:
    """One text and where it came from."""

    source: str
    """A path, with `:LINE` or `#ROW` for one record of a file."""

    text: str
    """Never empty or blank."""


def iter_documents(
    sources: Iterable[str | Path], *, on_progress: OnProgress = silent
) -> Iterator[Document]:
    """Yield the documents of all sources in a fixed order, holding one at a time.

    A plain text file is one document (one above 16 MiB is cut at line ends), a record of a JSON
    lines or parquet file is one, a folder is walked in sorted order without hidden, binary and
    blank files, whose numbers are reported as a note.

    Raises:
        DataError: a source is missing, unreadable, holds no text, is not UTF-8, or has records of
            an unknown shape.
        MissingExtraError: a parquet file or an `hf:` source without the extra `train-extras`.
    """
    for source in sources:
        skipped: Counter[str] = Counter()
        count = 0
        for place, text in _texts(str(source), skipped, on_progress):
            if not text.strip():
                skipped["blank"] += 1
                continue
            count += 1
            yield Document(place, text)
        tally = ", ".join(f"{number} {kind}" for kind, number in sorted(skipped.items()))
        if not count:
            raise DataError(
                f"source {str(source)!r} holds no text ({tally or 'it is empty'}); "
                "give a file or folder with text in it"
            )
        if tally:
            on_progress({"note": f"{source}: skipped {tally}"})


def _texts(
    source: str, skipped: Counter[str], on_progress: OnProgress
) -> Iterator[tuple[str, str]]:
    if source.startswith("hf:"):
        yield from import_module("llmlab.data.hub").read_hub(source)
    elif source == "stdlib":
        root = stdlib_root()
        for path in stdlib_files():
            yield f"stdlib/{path.relative_to(root).as_posix()}", read_source(path)
    elif source in NAMED:
        yield from read_file(find_named(source, on_progress=on_progress))
    else:
        for path in _files(source, skipped):
            yield from read_file(path)


def _files(source: str, skipped: Counter[str]) -> Iterator[Path]:
    path = Path(source).expanduser()
    if path.is_dir():
        yield from _walk(path, skipped)
    elif path.exists():
        if is_binary(path):
            raise DataError(f"{path} is a binary file, not text; convert it to text first")
        yield path
    elif glob.has_magic(source):
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 - takes absolute patterns
        if not matches:
            raise DataError(f"no file matches {source!r}; check the pattern")
        for match in map(Path, matches):
            yield from _walk(match, skipped) if match.is_dir() else _text_files([match], skipped)
    elif os.sep in source or path.suffix:
        raise DataError(f"source {source!r} does not exist; check the path")
    else:
        hint = did_you_mean(source, {"stdlib", *NAMED})
        raise DataError(f"source {source!r} is neither a path nor a built-in name{hint}")


def _walk(folder: Path, skipped: Counter[str]) -> Iterator[Path]:
    for root, folders, names in os.walk(folder, onerror=_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        shown = [name for name in sorted(names) if not name.startswith(".")]
        skipped["hidden"] += len(names) - len(shown)
        yield from _text_files((Path(root, name) for name in shown), skipped)
    skipped += Counter()  # drops zero counts


def _text_files(paths: Iterable[Path], skipped: Counter[str]) -> Iterator[Path]:
    for path in paths:
        if not path.is_file() or is_binary(path):
            skipped["binary"] += 1
        else:
            yield path


def _unreadable(error: OSError) -> None:
    raise DataError(
        f"cannot read {error.filename}: {error.strerror}; check its permissions"
    ) from error
