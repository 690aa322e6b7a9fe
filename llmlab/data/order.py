"""The shuffled order of windows: a pure function of (seed, position).

An epoch has every window once. A finished corpus is shuffled as a whole; one that is still being
tokenized in blocks of neighbouring windows, since a window can only come once it is there.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from llmlab.data.permutation import Permutation

_ORDER = 1
"""Part of the seed: what the numbers are drawn for."""

_STRETCH = 256
"""Places computed together."""


class Order:
    """Where the windows of a split come.

    Args:
        seed: of the shuffle.
        block: windows that are shuffled among each other; None for all.
    """

    def __init__(self, seed: int, block: int | None = None) -> None:
        self._seed, self._block = seed, block
        self._stretch = lru_cache(maxsize=8)(self._shuffle_stretch)

    def places(self, positions: Sequence[int], num_windows: int | None) -> list[tuple[int, int]]:
        """Return the epoch and the window at each position of the endless order.

        Args:
            positions: from 0.
            num_windows: windows an epoch; None while that is not known, and the blocks up to the
                positions are whole.
        """
        block = self._block or num_windows or 1
        places = []
        for position in positions:
            epoch, index = divmod(position, num_windows) if num_windows else (0, position)
            number, index = divmod(index, block)
            size = min(block, num_windows - number * block) if num_windows else block
            stretch, index = divmod(index, _STRETCH)
            window = self._stretch(size, epoch, number, stretch)[index]
            places.append((epoch, number * block + window))
        return places

    def _shuffle_stretch(self, size: int, epoch: int, number: int, stretch: int) -> list[int]:
        """A stretch of a block's order: as numpy's calls take longer than its sums."""
        first = stretch * _STRETCH
        indices = np.arange(first, min(first + _STRETCH, size))
        return Permutation(size, self._seed, epoch, number, _ORDER)(indices).tolist()
