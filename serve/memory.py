"""Memory for what is set aside at the start and filled bit by bit."""

import math

import numpy as np
import torch
from torch import Tensor


def lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros that take memory on a CPU only where they are written to, unlike torch's."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes, line = math.prod(shape) * dtype.itemsize, 64  # a cache line of the processor
    memory = np.zeros(num_bytes + line, dtype=np.uint8)
    start = -memory.ctypes.data % line
    return torch.from_numpy(memory[start : start + num_bytes]).view(dtype).view(shape)
