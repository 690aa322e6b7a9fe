"""What the index needs from an embedder: two functions and what they promise.

Not here: a model (embed.py loads one). Any function from texts to vectors makes an Embedder.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Embedder:
    """Turns texts into vectors whose inner product is their similarity."""

    name: str
    """For people, and what an index is reopened with."""

    fingerprint: str
    """Hex digest of everything that decides the vectors; vectors of two fingerprints never mix."""

    dim: int
    """Length of a vector."""

    max_tokens: int
    """Tokens of a text that count; what follows is ignored."""

    encode: Callable[[Sequence[str]], np.ndarray]
    """Texts to float32 `(n, dim)`, each row of norm 1."""

    token_starts: Callable[[str], np.ndarray]
    """Text to the character offset of each of its tokens, int64, not decreasing."""
