"""A small real embedder for tests: hashed bags of words, no model to load."""

import re
import zlib
from collections.abc import Sequence

import numpy as np

from llmlab.rag import Embedder
from llmlab.rag.words import content_stems

DIM = 64


def _encode(texts: Sequence[str]) -> np.ndarray:
    vectors = np.full((len(texts), DIM), 1e-3, dtype=np.float32)
    for row, text in zip(vectors, texts, strict=True):
        for word in content_stems(text):
            row[zlib.crc32(word.encode()) % DIM] += 1
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _token_starts(text: str) -> np.ndarray:
    return np.asarray([match.start() for match in re.finditer(r"\w+|[^\w\s]", text)], np.int64)


def words_embedder(name: str = "hashed words") -> Embedder:
    """Return an embedder with 64 dimensions; the name decides the fingerprint."""
    fingerprint = f"{zlib.crc32(name.encode()):08x}" * 8
    return Embedder(name, fingerprint, DIM, 254, _encode, _token_starts)
