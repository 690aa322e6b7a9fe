"""Timing side by side: everybody takes turns, so a slow minute of the machine hits all alike."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Return median, p20, p80 and the number of measurements."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return {
        "median": round(statistics.median(ordered), digits),
        "p20": round(ordered[round(0.2 * last)], digits),
        "p80": round(ordered[round(0.8 * last)], digits),
        "runs": len(ordered),
    }


def take_turns(tasks: Mapping[str, Callable[[], Any]], runs: int) -> dict[str, list[float]]:
    """Return the seconds of each task in each round; every second round goes backwards."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    names = list(tasks)
    for number in range(runs):
        for name in names if number % 2 == 0 else reversed(names):
            seconds[name].append(timed(tasks[name])[0])
    return seconds


def timed(task: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds a call takes, and its result; garbage is collected before, not during."""
    gc.collect()
    gc.disable()
    try:
        began_s = time.perf_counter()
        result = task()
        return time.perf_counter() - began_s, result
    finally:
        gc.enable()
