"""Run the cases of a device, and show them."""

import json
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from llmlab.kernels.bench.cases_cpu import cpu_cases
from llmlab.kernels.bench.cases_cuda import CudaCases
from llmlab.kernels.bench.config import BenchKernelsConfig
from llmlab.kernels.bench.measure import Case, Limits, Row, as_json, limits_of, measure


@dataclass(frozen=True)
class Found:
    """What a run found."""

    device: str
    """The device's name."""
    num_threads: int | None
    """Of a CPU."""
    limits: Limits
    rows: list[Row]

    def summary(self) -> str:
        """Return what the rows were held against."""
        threads = f", {self.num_threads} threads" if self.num_threads else ""
        return (
            f"{self.device}{threads}: {self.limits.gb_per_s:.1f} GB/s, "
            f"{self.limits.tflop_per_s:.2f} TFLOP/s in bfloat16; ratios are how many times as long "
            "the others take"
        )


def check(config: BenchKernelsConfig) -> torch.device:
    """Return the device to measure, before anything is measured.

    Raises:
        ValueError: what is asked for cannot be done here.
    """
    if config.rounds < 1:
        raise ValueError(f"rounds={config.rounds}; it must be 1 or more")
    if config.out is not None and not Path(config.out).absolute().parent.is_dir():
        raise ValueError(f"out={str(config.out)!r} lies in no folder; make it first")
    return device_of(config.device)


def device_of(name: str) -> torch.device:
    """Return the device of a name.

    Raises:
        ValueError: not a device of this machine.
    """
    if name not in ("cpu", "cuda"):
        raise ValueError(f"device={name!r}; it must be cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda', and PyTorch finds no GPU here; take cpu")
    return torch.device(name)


def bench(config: BenchKernelsConfig, device: torch.device, say: Callable[[str], object]) -> Found:
    """Measure, saying each row at once, and add the rows to a file if one is named."""
    found = run(device, config.rounds, only=config.only, on_row=lambda row: say(as_line(row)))
    if config.out is not None:
        append(found, Path(config.out))
    return found


def append(found: Found, path: Path) -> None:
    """Add a line of JSON for each row, with what it was measured on."""
    about = {
        "device": found.device,
        "processor": platform.processor() or platform.machine(),
        "num_threads": found.num_threads,
        "torch": torch.__version__,
        "llmlab": _version(),
        "limits": as_json(found.limits),
    }
    with path.open("a", encoding="utf-8") as file:
        for row in found.rows:
            file.write(json.dumps({**about, **as_json(row)}) + "\n")


def _version() -> str | None:
    try:
        return version("llmlab")
    except PackageNotFoundError:  # a source tree that is not installed
        return None


def run(
    device: torch.device,
    rounds: int,
    *,
    only: str = "",
    is_small: bool = False,
    on_row: Callable[[Row], object] = lambda row: None,
) -> Found:
    """Measure.

    Args:
        device: a CPU or a GPU.
        rounds: how often each way is run.
        only: part of an operator's name; others are left out.
        is_small: tiny sizes, to see that it works.
        on_row: is told every row at once.
    """
    limits = limits_of(device, is_small=is_small)
    rows = []
    torch.manual_seed(0)
    for case in _cases(device, is_small=is_small):
        if only in case.op:
            rows.append(measure(case, limits, device, rounds))
            on_row(rows[-1])
    is_cpu = device.type == "cpu"
    name = "cpu" if is_cpu else torch.cuda.get_device_name(device)
    return Found(name, torch.get_num_threads() if is_cpu else None, limits, rows)


def as_line(row: Row) -> str:
    """Return a row for people."""
    parts = [f"{row.op:32} {row.shape:36} {row.ms.median:9.3f} ms"]
    if row.gb_per_s and row.of_bandwidth:
        parts.append(f"{row.gb_per_s:7.1f} GB/s ({row.of_bandwidth:4.0%})")
    if row.tflop_per_s and row.of_product_rate:
        parts.append(f"{row.tflop_per_s:7.2f} TFLOP/s ({row.of_product_rate:4.0%})")
    parts += [
        f"{name} {'-' if ratio is None else f'{ratio:.2f}x'}" for name, ratio in row.ratios.items()
    ]
    if row.peak_mb:
        parts.append("MB " + " / ".join(f"{mb:.0f}" for mb in row.peak_mb.values()))
    return "  ".join(parts)


def _cases(device: torch.device, *, is_small: bool) -> Iterable[Case]:
    return cpu_cases(is_small=is_small) if device.type == "cpu" else CudaCases(device)
