"""Data sets known by name: found in a data folder or the cache, else downloaded and checked.

Looked for in this order: `$LLMLAB_DATA`, the cache (`$LLMLAB_CACHE`, by default
`~/.cache/llmlab`), the address below. Whatever is found must have the SHA-256 below. Writes only
into the cache.
"""

import hashlib
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from llmlab.errors import DataError, did_you_mean
from llmlab.outputs import whole_file
from llmlab.track import OnProgress, silent

_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class NamedDataset:
    """Where a data set lies and how it is recognised."""

    path: str
    """Place inside the data folder and inside the cache."""

    url: str
    """Canonical address."""

    sha256: str
    """SHA-256 of the file, hex."""

    about: str
    """What it is, in a few words."""


NAMED = {
    "names": NamedDataset(
        path="names/names.txt",
        url="https://raw.githubusercontent.com/karpathy/makemore/master/names.txt",
        sha256="0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d",
        about="32,033 first names, one a line (MIT)",
    ),
    "tinyshakespeare": NamedDataset(
        path="tinyshakespeare/input.txt",
        url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        about="1.1 MB of Shakespeare's plays (public domain)",
    ),
}


def find_named(name: str, *, on_progress: OnProgress = silent) -> Path:
    """Return the file of a named data set, downloading it into the cache when it is nowhere.

    Raises:
        DataError: unknown name, a file with another SHA-256, or a failed download.
    """
    if name not in NAMED:
        raise DataError(f"no data set is named {name!r}{did_you_mean(name, NAMED)}")
    dataset = NAMED[name]
    places = [cache_folder() / dataset.path]
    if folder := os.environ.get("LLMLAB_DATA"):
        places.insert(0, Path(folder) / dataset.path)
    for place in places:
        if place.is_file():
            _check(place, dataset)
            return place
    on_progress({"note": f"downloading {name} from {dataset.url}"})
    _download(dataset, places[-1])
    return places[-1]


def cache_folder() -> Path:
    """Return the folder that downloads go to."""
    return Path(os.environ.get("LLMLAB_CACHE") or Path.home() / ".cache" / "llmlab")


def _download(dataset: NamedDataset, place: Path) -> None:
    with whole_file(place) as partial:
        try:
            with (
                urllib.request.urlopen(dataset.url, timeout=_TIMEOUT_S) as answer,
                partial.open("wb") as file,
            ):
                while block := answer.read(1 << 20):
                    file.write(block)
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            raise DataError(
                f"could not download {dataset.url}: {error}; "
                f"put the file at {place}, or point LLMLAB_DATA at a folder with {dataset.path}"
            ) from error
        _check(partial, dataset)


def _check(path: Path, dataset: NamedDataset) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != dataset.sha256:
        raise DataError(
            f"{path} has SHA-256 {found}, expected {dataset.sha256}; "
            "delete it, and it will be downloaded again"
        )
