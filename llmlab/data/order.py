"""The shuffled order of windows: a pure function of (seed, position).

An epoch has every window once. A finished corpus is shuffled as a whole; one that is still being
tokenized in blocks of neighbouring windows, since a window can only come once it is there.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from llmlab.data.permutation import Permutation

_ORDER = 1
"""Part of the seed: what the numbers are drawn for."""


class Order:
    """Where the windows of a split come.

    Args:
        seed: of the shuffle.
        block: windows that are shuffled among each other; None for all.
    """

    def __init__(self, seed: int, block: int | None = None) -> None:
        self._block = block
        self._permutation = lru_cache(maxsize=4)(
            lambda size, epoch, number: Permutation(size, seed, epoch, number, _ORDER)
        )

    def places(self, positions: Sequence[int], num_windows: int | None) -> list[tuple[int, int]]:
        """Return the epoch and the window at each position of the endless order.

        Args:
            positions: from 0.
            num_windows: windows an epoch; None while that is not known, and the blocks up to the
                positions are whole.
        """
        block = self._block or num_windows or 1
        places: list[tuple[int, int]] = [(0, 0)] * len(positions)
        together: dict[tuple[int, int], list[int]] = defaultdict(list)
        for row, position in enumerate(positions):
            places[row] = divmod(position, num_windows) if num_windows else (0, position)
            together[places[row][0], places[row][1] // block].append(row)
        for (epoch, number), rows in together.items():
            first = number * block
            size = min(block, num_windows - first) if num_windows else block
            indices = np.array([places[row][1] - first for row in rows])
            shuffled = self._permutation(size, epoch, number)(indices)
            for row, window in zip(rows, shuffled.tolist(), strict=True):
                places[row] = epoch, first + window
        return places
