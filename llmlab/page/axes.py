"""Where the ticks of an axis stand, what they say, and where a value lies on it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """The values `low` to `high` on a length of paper."""

    low: float
    high: float
    is_log: bool
    start: float
    """Where `low` lies."""

    end: float
    """Where `high` lies."""

    def place(self, value: float) -> float:
        """Return where a value lies; outside the range it lies outside the paper."""
        low, high, value = (self._scaled(v) for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Return about `count` round values inside the range, ascending."""
        if not self.is_log:
            return _linear_ticks(self.low, self.high, count)
        for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
            found = _log_ticks(self.low, self.high, factors)
            if len(found) >= 3:
                return found[:: math.ceil(len(found) / (count + 2))]
        return _linear_ticks(self.low, self.high, count)

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.is_log else value


def axis_over(
    values: Iterable[float], *, is_log: bool, start: float, end: float, pad: float = 0.04
) -> Axis:
    """Return an axis that holds all values, with a little room.

    Args:
        values: finite, and positive where `is_log`; may be empty.
        is_log: whether equal ratios lie equally far apart.
        start: where the lowest lies.
        end: where the highest lies.
        pad: room at both ends, a share of the range.
    """
    found = list(values) or [1.0, 2.0]
    low, high = min(found), max(found)
    if is_log:
        room = (high / low) ** pad if high > low else 1.5
        return Axis(low / room, high * room, True, start, end)
    room = (high - low) * pad if high > low else abs(high) * 0.1 or 1.0
    return Axis(low - room if low < 0 or low > room else 0.0, high + room, False, start, end)


def short(value: float) -> str:
    """Return a number in few characters: 1.5M, 20k, 0.05, 3e-4."""
    size = abs(value)
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if size >= unit * 0.99995:
            return f"{value / unit:.4g}{name}"
    if size and size < 1e-2:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"


def _linear_ticks(low: float, high: float, count: int) -> list[float]:
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _log_ticks(low: float, high: float, factors: Iterable[float]) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = (factor * 10.0**power for power in powers for factor in factors)
    return [tick for tick in ticks if low <= tick <= high]
