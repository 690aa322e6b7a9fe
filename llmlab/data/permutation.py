"""A shuffle of any size that is computed, not stored.

`Permutation(size, seed, ...)` maps 0 ... size - 1 one to one onto itself. It takes no memory, gives
any element at once, and is the same on every machine, so that a place in a shuffled corpus is one
number, whoever reads it.

It is a Feistel network on pairs (left, right) with x = left * width + right, whose two sides are
added to modulo their own sizes, so that the pairs are barely more than `size`; a value that falls
outside is mapped again until it falls inside (Black and Rogaway, "Ciphers with Arbitrary Finite
Domains", 2002). A shuffle of blocks would read a disk in larger pieces, but it mixes the corpus
only inside a block; single windows of a mapped file cost a page each.
"""

import math

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 12
"""Four make it indistinguishable from chance for large sizes (Luby and Rackoff, 1988); with twelve
every order of five things is equally likely, as far as 20,000 seeds can tell."""

_MULTIPLIERS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)


class Permutation:
    """A seeded one-to-one map of range(size) onto itself.

    Args:
        size: how many numbers, at least 1.
        key: what chooses the permutation, such as a seed and an epoch; each at least 0.
    """

    def __init__(self, size: int, *key: int) -> None:
        self.size = size
        self._height = math.isqrt(size - 1) + 1
        self._width = -(-size // self._height)
        self._keys = np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)

    def __call__(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where each index goes.

        Args:
            indices: (n,), each in range(size).
        """
        values = self._rounds(indices.astype(np.uint64))
        while (outside := values >= self.size).any():
            values[outside] = self._rounds(values[outside])
        return values.astype(np.int64)

    def _rounds(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        height, width = np.uint64(self._height), np.uint64(self._width)
        left, right = np.divmod(values, width)
        for number in range(0, _ROUNDS, 2):
            left = (left + _mixed(right, self._keys[number]) % height) % height
            right = (right + _mixed(left, self._keys[number + 1]) % width) % width
        return left * width + right


def _mixed(values: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """A hash in which every bit of the value and the key changes half of the bits (SplitMix64)."""
    bits = values ^ key
    bits = (bits ^ (bits >> _SHIFTS[0])) * _MULTIPLIERS[0]
    bits = (bits ^ (bits >> _SHIFTS[1])) * _MULTIPLIERS[1]
    return bits ^ (bits >> _SHIFTS[2])
