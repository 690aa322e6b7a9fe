"""What a run is about to do and what it took, as plain values for its journal."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from llmlab.data import Shards
from llmlab.hardware import physical_cores
from llmlab.model import ModelConfig

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def start_facts(
    model: ModelConfig, shards: list[Shards], device: torch.device, context_len: int, memory: int
) -> dict[str, Any]:
    """Return the sizes of model and data, and the machine.

    Args:
        model: its shape.
        shards: the data, a folder a source.
        device: where it trains.
        context_len: tokens in a window, T.
        memory: its estimate in bytes (outlook.py).
    """
    return {
        "device": device_name(device),
        "versions": {name: version(name) for name in ("llmlab", "torch")},
        "python": platform.python_version(),
        "model": model.to_dict(),
        "num_parameters": model.num_parameters,
        "num_non_embedding": non_embedding(model),
        "flops_per_token": model.flops_per_token(context_len),
        "kv_bytes_per_token": model.kv_bytes_per_token(),
        "memory_estimate_bytes": memory,
        "train_tokens": sum(len(one.split("train")) for one in shards),
        "val_tokens": sum(len(one.split("val")) for one in shards),
    }


def non_embedding(model: ModelConfig) -> int:
    """Return the parameters without the tables of the vocabulary and of positions.

    A head is such a table, tied or not. This is the size N of arXiv:2001.08361.
    """
    return (
        model.num_parameters - model.num_embedding_parameters - model.vocab_size * model.hidden_size
    )


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or of the processor with the cores this process may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {physical_cores()} cores ({torch.get_num_threads()} used)"


def restart_peak_memory(device: torch.device) -> None:
    """Begin to measure peak memory anew, so that runs of one process are told apart."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _RESET.exists():
        try:
            _RESET.write_text("5")  # Linux: the peak is set back to what is in use now
        except OSError:
            return  # not allowed here: the peak is then that of the whole process


def peak_memory_bytes(device: torch.device) -> int | None:
    """Return the most memory held at once: on the GPU, or by this process (Linux); else None."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if not _STATUS.exists():
        return None
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    peak = next((line for line in lines if line.startswith("VmHWM:")), None)
    return int(peak.split()[1]) * 1024 if peak else None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
