"""Which source each sample of a mixture comes from.

The order is fixed: after any number of samples, each source has had its share of them to within
one. That is the chairman assignment problem, and this is its solution by R. Tijdeman (Discrete
Mathematics 32, 1980). Shares are whole numbers, so nothing drifts.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

from llmlab.errors import ConfigError


class Mixture:
    """Turns of several sources.

    Args:
        weights: one a source, above 0; only their ratios matter.

    Raises:
        ConfigError: a weight is not a number above 0.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        if not all(math.isfinite(weight) and weight > 0 for weight in weights):
            raise ConfigError(
                f"weights={list(weights)} must all be above 0; leave out a source without weight"
            )
        fractions = [Fraction(str(weight)) for weight in weights]
        scale = math.lcm(*(fraction.denominator for fraction in fractions))
        self._parts = [int(fraction * scale) for fraction in fractions]
        self._total = sum(self._parts)
        self.shares = [part / self._total for part in self._parts]
        """The weights, adding up to 1."""
        self.taken = [0] * len(weights)
        """Samples so far of each source; setting it goes to another place."""

    def next(self) -> tuple[int, int]:
        """Return the source of the next sample, and how many of its samples came before."""
        source = self._whose_turn() if len(self.taken) > 1 else 0
        index = self.taken[source]
        self.taken[source] += 1
        return source, index

    def _whose_turn(self) -> int:
        """Of the sources that are far enough behind, the one that first would be too far behind."""
        turn, slack = sum(self.taken) + 1, 2 * len(self.taken) - 2
        best, deadline = -1, math.inf
        for source, (part, taken) in enumerate(zip(self._parts, self.taken, strict=True)):
            behind = slack * (turn * part - taken * self._total)
            if behind >= self._total:
                left = ((slack - 1) * self._total - behind) / part
                if left < deadline:
                    best, deadline = source, left
        return best
