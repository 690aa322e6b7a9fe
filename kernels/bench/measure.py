"""Timing on a CPU and a GPU, and the limits of the machine that the times are held against."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

import torch

Task = Callable[[int], object]
"""Takes the number of the round, so that a round can have data of its own that no cache holds."""


@dataclass(frozen=True)
class Case:
    """What is compared: an operator of ours and ways to do the same with PyTorch."""

    op: str
    shape: str
    ours: Task
    baselines: Mapping[str, Task] = field(default_factory=dict)
    num_bytes: int = 0
    """What must be read and written at least; 0 where that is not the limit."""
    num_flops: int = 0
    """Multiplications and additions; 0 where they are not the limit."""


@dataclass(frozen=True)
class Times:
    """Milliseconds of several runs."""

    median: float
    p20: float
    p80: float


@dataclass(frozen=True)
class Limits:
    """What the device did in this run, with nothing else to do."""

    gb_per_s: float
    """A CPU's reading of memory, a GPU's copying, counted both ways."""
    tflop_per_s: float
    """A large bfloat16 product."""


@dataclass(frozen=True)
class Row:
    """What was found for a case."""

    op: str
    shape: str
    ms: Times
    gb_per_s: float | None
    of_bandwidth: float | None
    tflop_per_s: float | None
    of_product_rate: float | None
    ratios: dict[str, float | None]
    """How many times as long each baseline takes; None where it does not run here."""
    peak_mb: dict[str, float] | None
    """Memory allocated on top of the arguments, by ours and by each baseline; a GPU's only."""


def measure(case: Case, limits: Limits, device: torch.device, rounds: int) -> Row:
    """Time a case, its baselines in turn with it."""
    tasks = {"ours": case.ours, **case.baselines}
    running = {name: task for name, task in tasks.items() if _runs(name, task)}
    times = (gpu_times if device.type == "cuda" else _cpu_times)(running, rounds)
    seconds = times["ours"].median / 1e3
    gb_per_s = case.num_bytes / seconds / 1e9 if case.num_bytes else None
    tflop_per_s = case.num_flops / seconds / 1e12 if case.num_flops else None
    return Row(
        op=case.op,
        shape=case.shape,
        ms=times["ours"],
        gb_per_s=gb_per_s,
        of_bandwidth=gb_per_s and gb_per_s / limits.gb_per_s,
        tflop_per_s=tflop_per_s,
        of_product_rate=tflop_per_s and tflop_per_s / limits.tflop_per_s,
        ratios={
            name: times[name].median / times["ours"].median if name in times else None
            for name in case.baselines
        },
        peak_mb=_peaks(running) if device.type == "cuda" else None,
    )


def limits_of(device: torch.device, *, is_small: bool = False) -> Limits:
    """Measure how fast a device moves memory and multiplies.

    Args:
        device: a CPU or a GPU.
        is_small: moves and multiplies little, to see that it works.
    """
    is_gpu = device.type == "cuda"
    size, side = (2**20, 128) if is_small else (2**30, 8192 if is_gpu else 2048)
    rounds = 2 if is_small else 10
    numbers = torch.ones(size // 4, device=device)
    left = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    other = torch.empty_like(numbers) if is_gpu else numbers
    tasks: dict[str, Task] = {
        "move": (lambda _: other.copy_(numbers)) if is_gpu else lambda _: numbers.sum(),
        "multiply": lambda _: left @ left,
    }
    times = (gpu_times if is_gpu else _cpu_times)(tasks, rounds)
    moved = 2 * size if is_gpu else size
    return Limits(
        gb_per_s=moved / times["move"].median / 1e6,
        tflop_per_s=2 * side**3 / times["multiply"].median / 1e9,
    )


def as_json(row: Row | Limits) -> dict[str, object]:
    """Return a row with three significant digits."""
    return {key: _rounded(value) for key, value in asdict(row).items()}


def _rounded(x: object) -> object:
    if isinstance(x, dict):
        return {key: _rounded(value) for key, value in x.items()}
    return float(f"{x:.3g}") if isinstance(x, float) else x


def _runs(name: str, task: Task) -> bool:
    """Tell whether a baseline runs here; ours must."""
    try:
        task(0)
    except (RuntimeError, NotImplementedError):
        if name == "ours":
            raise
        return False
    return True


def _cpu_times(tasks: Mapping[str, Task], rounds: int) -> dict[str, Times]:
    """Time tasks in turn, so that a slow moment of the machine hits all alike."""
    found: dict[str, list[float]] = {name: [] for name in tasks}
    number = 0
    for _ in range(rounds):
        for name, task in tasks.items():
            number += 1
            began_s = time.perf_counter()
            task(number)
            found[name].append(1e3 * (time.perf_counter() - began_s))
    return {name: _times(values) for name, values in found.items()}


def gpu_times(tasks: Mapping[str, Task], rounds: int) -> dict[str, Times]:
    """Time tasks in turn by events, the second-level cache overwritten before each."""
    cache = torch.empty(2**28, dtype=torch.int8, device="cuda")
    found: dict[str, list[float]] = {name: [] for name in tasks}
    for task in tasks.values():
        task(0)
    for number in range(rounds):
        events = {}
        for name, task in tasks.items():
            cache.zero_()
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            task(number)
            ended.record()
            events[name] = began, ended
        torch.cuda.synchronize()
        for name, (began, ended) in events.items():
            found[name].append(began.elapsed_time(ended))
    return {name: _times(values) for name, values in found.items()}


def _times(values: list[float]) -> Times:
    ordered = sorted(values)
    last = len(ordered) - 1
    return Times(statistics.median(ordered), ordered[round(0.2 * last)], ordered[round(0.8 * last)])


def _peaks(tasks: Mapping[str, Task]) -> dict[str, float]:
    found = {}
    for name, task in tasks.items():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = task(0)
        torch.cuda.synchronize()
        found[name] = (torch.cuda.max_memory_allocated() - before) / 1e6
        del kept
    return found
