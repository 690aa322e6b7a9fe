"""Choosing tokens on a CPU, in C++ (cpp/sample.cpp)."""

import torch
from torch import Tensor

from llmlab.kernels.native import address, empty, native_function


def sample_tokens(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, draw: Tensor
) -> Tensor:
    """Run; see sample.py."""
    function = native_function("sample", torch.float32, "pppppppiii")
    if function is None:
        return NotImplemented
    logits = logits.float()
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    B, V = logits.shape
    out = empty((B,), torch.int64)
    settings = [address(x.contiguous()) for x in (temperature, top_k, top_p, min_p, draw)]
    function(address(out), address(logits), *settings, B, V, logits.stride(0))
    return out
