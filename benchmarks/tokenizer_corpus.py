"""The text that tokenizers are timed on."""

import sysconfig
from collections.abc import Iterator
from pathlib import Path

from llmlab.data.named import find_named


def stdlib_texts(*, every: int = 1, limit_mb: float | None = None) -> Iterator[str]:
    """Yield the `.py` files of this Python's standard library, tests included, that are UTF-8.

    Args:
        every: take each file whose number in sorted order this divides.
        limit_mb: stop after this many MB (10^6 bytes of UTF-8).
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(
        path
        for path in root.rglob("*.py")
        if not {"site-packages", "dist-packages"} & set(path.relative_to(root).parts)
    )
    left = float("inf") if limit_mb is None else limit_mb * 1e6
    for path in files[::every]:
        data = path.read_bytes()
        try:
            yield data.decode("utf-8")
        except UnicodeDecodeError:
            continue  # four test files of encodings
        left -= len(data)
        if left <= 0:
            return


def shakespeare_texts(*, limit_mb: float | None = None) -> list[str]:
    """Return the speeches of tinyshakespeare, about 7,200 short documents."""
    text = find_named("tinyshakespeare").read_text(encoding="utf-8")
    if limit_mb is not None:
        text = text[: int(limit_mb * 1e6)]
    return [speech + "\n\n" for speech in text.split("\n\n")]


def num_bytes(texts: list[str]) -> int:
    """Return the bytes of UTF-8 of all texts."""
    return sum(len(text.encode()) for text in texts)
