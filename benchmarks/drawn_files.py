"""Text to train on: files drawn at random from folders, such as the packages installed here."""

import random
from collections.abc import Iterable
from pathlib import Path


def draw_files(sources: Iterable[str], num_bytes: float) -> list[Path]:
    """Return files of the sources in a random order, as many as make up so many bytes."""
    found = sorted(
        path
        for source in sources
        for path in Path(source).rglob("*")
        if path.suffix in (".py", ".txt", ".md") and path.is_file() and path.stat().st_size > 200
    )
    random.Random(0).shuffle(found)
    drawn = []
    for path in found:
        if num_bytes <= 0:
            break
        drawn.append(path)
        num_bytes -= path.stat().st_size
    return drawn
