"""A stream of texts in batches of about 2 MiB, the same ones however many threads take them.

Short texts are gathered; a long one is cut where its pre-tokens stay what they are (`safe_cut`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmlab.tokenizers.alphabet import utf8
from llmlab.tokenizers.compiled.char_classes import classes_for
from llmlab.tokenizers.compiled.scanner import safe_cut
from llmlab.tokenizers.scan_rules import ScanRules

BATCH_BYTES = 2**21
"""Text in a batch; more only where a longer text cannot be cut."""


@dataclass(frozen=True)
class Batch:
    """Texts, or a part of one."""

    data: npt.NDArray[np.uint8]
    """(num_bytes,) UTF-8 of the texts, one after the other, read-only."""

    bounds: npt.NDArray[np.int64]
    """(num_texts + 1,) where each begins, and where the last one ends."""

    num_documents: int
    """How many texts end in this batch."""


def batches(texts: Iterable[str], rules: ScanRules) -> Iterator[Batch]:
    """Yield the texts in batches that depend on nothing but the texts and how they are cut.

    Raises:
        TokenizerError: a text has a lone surrogate.
    """
    waiting: list[bytes] = []
    num_bytes = 0
    for text in texts:
        raw = utf8(text)
        if num_bytes + len(raw) > BATCH_BYTES:
            yield _joined(waiting)
            waiting, num_bytes = [], 0
        if len(raw) > BATCH_BYTES:
            yield from _parts(raw, rules)
        else:
            waiting.append(raw)
            num_bytes += len(raw)
    yield _joined(waiting)


def _joined(texts: list[bytes]) -> Batch:
    bounds = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    return Batch(np.frombuffer(b"".join(texts), np.uint8), bounds, len(texts))


def _parts(raw: bytes, rules: ScanRules) -> Iterator[Batch]:
    """Yield one long text in parts that have the pre-tokens of the whole."""
    data = np.frombuffer(raw, np.uint8)
    classes = classes_for(rules)
    start, size = 0, BATCH_BYTES
    while start + size < len(raw):
        stop = start + size
        while data[stop] & 0xC0 == 0x80:
            stop -= 1
        cut = safe_cut(data, start, stop, classes, rules)
        if cut == start:
            size *= 2  # one kind of character all along; look further
            continue
        yield Batch(data[start:cut], np.array([0, cut - start]), 0)
        start, size = cut, BATCH_BYTES
    yield Batch(data[start:], np.array([0, len(raw) - start]), 1)
