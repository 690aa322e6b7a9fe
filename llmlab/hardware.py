"""What this machine can do: device, number format, cores, and the measured rate of one GEMM.

Nothing is probed at import. Rates are measured, not looked up, for a processor that lacks bfloat16
instructions accepts bfloat16 all the same and is many times slower with it.
"""

import os
import time
from pathlib import Path

import torch

from llmlab.errors import ConfigError

_GEMM_SIZE = 512
_MIN_SPEEDUP = 1.2


def pick_device(name: str = "auto") -> torch.device:
    """Return the device of that name; "auto" is the first CUDA device where there is one.

    Raises:
        ConfigError: another name, or a CUDA device that this machine does not offer.
    """
    has_cuda = torch.cuda.is_available()
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device={name!r} is not supported; supported: auto, cpu, cuda")
    if name == "cuda" and not has_cuda:
        raise ConfigError("device='cuda', but torch finds no CUDA device; use --device cpu")
    return torch.device("cuda" if has_cuda and name != "cpu" else "cpu")


def pick_dtype(device: torch.device | str) -> tuple[torch.dtype, str]:
    """Choose between float32 and bfloat16 for matrix products on a device.

    Returns:
        The dtype and a sentence that says why. On a CPU both are timed (about 20 ms), and bfloat16
        must be at least 1.2 times faster, for it costs precision.
    """
    device = torch.device(device)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, f"bfloat16: {name} multiplies it natively"
        return torch.float32, f"float32: {name} has no bfloat16"
    wide = gemm_flops_per_s(torch.float32, device)
    narrow = gemm_flops_per_s(torch.bfloat16, device)
    ratio = narrow / wide
    rates = f"{narrow / 1e9:.0f} GFLOP/s against {wide / 1e9:.0f} in float32"
    if ratio >= _MIN_SPEEDUP:
        return torch.bfloat16, f"bfloat16: {ratio:.1f} times faster on this {device} ({rates})"
    return torch.float32, f"float32: bfloat16 does not pay on this {device} ({rates})"


def gemm_flops_per_s(
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    *,
    size: int = _GEMM_SIZE,
    min_time_s: float = 0.005,
) -> float:
    """Measure the rate of a square matrix product, the ceiling for training and prefill.

    Args:
        dtype: of both factors; what it accumulates in is the library's choice.
        device: where.
        size: rows and columns; 512 for a quick choice, 4096 for a GPU's peak.
        min_time_s: of repetition in each of three tries; the fastest try counts.

    Returns:
        Floating-point operations a second, with torch's current number of threads.
    """
    device = torch.device(device)
    left = torch.ones(size, size, dtype=dtype, device=device)
    right = torch.ones(size, size, dtype=dtype, device=device)
    torch.mm(left, right)  # the first call may pick or build a kernel
    best_s = min(_seconds_per_product(left, right, min_time_s) for _ in range(3))
    return 2 * size**3 / best_s


def physical_cores() -> int:
    """Return how many physical cores this process may use; hyper-threads are not counted.

    Respects the process's CPU affinity and, on Linux, a container's CPU quota.
    """
    cpus = _allowed_cpus()
    cores = {_core_of(cpu) for cpu in cpus}
    quota = _cpu_quota()
    return max(1, len(cores) if quota is None else min(len(cores), int(quota)))


def _seconds_per_product(left: torch.Tensor, right: torch.Tensor, min_time_s: float) -> float:
    _wait(left.device)
    start_s = time.perf_counter()
    count = 0
    while True:
        torch.mm(left, right)
        count += 1
        if count % 4 == 0:
            _wait(left.device)
        elapsed_s = time.perf_counter() - start_s
        if elapsed_s >= min_time_s:
            _wait(left.device)
            return (time.perf_counter() - start_s) / count


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _allowed_cpus() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _core_of(cpu: int) -> str:
    siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        return siblings.read_text(encoding="ascii").strip()
    except OSError:
        return str(cpu)  # not Linux: every logical CPU counts as a core


def _cpu_quota() -> float | None:
    """Return the container's limit in CPUs (cgroup v2), or None without one."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)
