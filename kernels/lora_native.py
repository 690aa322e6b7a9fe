"""Low-rank adapters on a CPU, in C++ (cpp/lora.cpp)."""

import torch
from torch import Tensor

from llmlab.kernels.native import address, empty, native_function


def add_lora(
    out: Tensor,
    x: Tensor,
    down: Tensor,
    up: Tensor,
    scale: Tensor,
    rows: Tensor,
    starts: Tensor,
    ranks: Tensor | None,
) -> None:
    """Run; see lora.py. A tape can record it: who has which adapter is read when it runs."""
    function = native_function("add_lora", x.dtype, "pppppppppiiiiii")
    if function is None or not (out.dtype == down.dtype == up.dtype == x.dtype):
        return NotImplemented
    if out.stride(1) != 1 and out.shape[1] > 1:
        return NotImplemented
    if x.stride(1) != 1:
        x = x.contiguous()
    (N, width), (L, R, _) = x.shape, down.shape
    across = up.transpose(1, 2).contiguous()  # (L, R, O), no copy where it lies so
    narrow = empty((N, R), torch.float32)
    function(
        address(out), address(x), address(down.contiguous()), address(across), address(scale),
        address(rows), address(starts), address(ranks), address(narrow),
        L, R, width, out.shape[1], out.stride(0), x.stride(0),
    )  # fmt: skip
    return None
