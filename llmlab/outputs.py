"""Outputs appear whole or not at all: they are written beside their place and renamed into it.

Not here: what is written (each format has its own writer). A name that starts with `.` and ends in
`.partial` is an output in the making; one left by a killed process is removed by the next writer.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmlab.errors import OutputError

# EFBIG: a file system or a limit of the process that takes no file as large.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


@contextmanager
def whole_folder(path: Path | str, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes `path` when the block ends without an error.

    Args:
        path: where the folder shall appear. An existing empty folder is replaced.
        overwrite: replace an existing folder with contents; the old one stays until the new one
            is complete.

    Raises:
        OutputError: `path` exists and `overwrite` is false, or the disk is full.
    """
    path = Path(path)
    check_free(path, overwrite=overwrite)
    partial = _partial(path)
    with _disk_errors(path):
        _remove(partial)
        partial.mkdir(parents=True)
    try:
        with _disk_errors(path):
            yield partial
            _swap(partial, path)
    except BaseException:
        _remove(partial)
        raise


@contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it when the block ends without an error.

    Raises:
        OutputError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    partial = _partial(path)
    try:
        with _disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
    except BaseException:
        _remove(partial)
        raise


def check_free(path: Path | str, *, overwrite: bool) -> None:
    """Raise OutputError when `path` holds something and `overwrite` is false."""
    path = Path(path)
    taken = path.exists() and not (path.is_dir() and not any(path.iterdir()))
    if taken and not overwrite:
        raise OutputError(f"{path} already exists; choose another --out or add --overwrite")


def _partial(path: Path) -> Path:
    return path.resolve().with_name(f".{path.resolve().name}.partial")


def _swap(partial: Path, path: Path) -> None:
    old = path.resolve().with_name(f".{path.resolve().name}.old")
    _remove(old)
    if path.exists():
        path.replace(old)
    partial.replace(path)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        place = next(p for p in [path.resolve(), *path.resolve().parents] if p.exists())
        free_mb = shutil.disk_usage(place).free / 1e6
        raise OutputError(
            f"cannot write {path}: {error.strerror} ({free_mb:.0f} MB free); "
            "free some space or choose another --out"
        ) from error
