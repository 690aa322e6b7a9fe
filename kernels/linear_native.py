"""Linear layers with int8 and int4 weights on a CPU: C++ around PyTorch's integer product."""

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.kernels.int4 import dequantize_groups
from llmlab.kernels.native import empty, native_function

_FEW_ROWS = 16
"""Rows from which on it is cheaper to widen the weights and use the processor's matrix units."""


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Run; see int8.py."""
    function = native_function("quantize_rows", x.dtype, "pppii")
    if function is None:
        return NotImplemented
    x = x.contiguous()
    numbers = empty(x.shape, torch.int8)
    scale = empty((len(x),), torch.float32)
    function(numbers.data_ptr(), scale.data_ptr(), x.data_ptr(), *x.shape)
    return numbers, scale


def w8a8_linear(
    x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, dtype: torch.dtype
) -> Tensor:
    """Run; see int8.py."""
    (M, K), N = x.shape, len(weight)
    if M <= _FEW_ROWS:
        function = native_function("w8a8_linear", dtype, "pppppiii")
        if function is None or not weight.is_contiguous():
            return NotImplemented
        x, out = x.contiguous(), empty((M, N), dtype)
        function(
            out.data_ptr(), x.data_ptr(), x_scale.data_ptr(), weight.data_ptr(), scale.data_ptr(),
            M, N, K,
        )  # fmt: skip
        return out
    function = native_function("rescale", dtype, "ppppii")
    if function is None:
        return NotImplemented
    sums = torch._int_mm(x, weight.t())  # (M, N), int32
    out = empty((M, N), dtype)
    function(out.data_ptr(), sums.data_ptr(), x_scale.data_ptr(), scale.data_ptr(), M, N)
    return out


def w8a16_linear(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Run; see int8.py."""
    if len(x) > _FEW_ROWS:
        return (F.linear(x, weight.to(x.dtype)) * scale).to(x.dtype)
    function = native_function("w8a16_linear", x.dtype, "ppppiii")
    if function is None or not weight.is_contiguous():
        return NotImplemented
    x = x.contiguous()
    out = empty((len(x), len(weight)), x.dtype)
    function(
        out.data_ptr(), x.data_ptr(), weight.data_ptr(), scale.data_ptr(), len(x), *weight.shape
    )
    return out


def w4a16_linear(x: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    """Run; see int4.py."""
    if len(x) > _FEW_ROWS:
        return F.linear(x, dequantize_groups(packed, scale).to(x.dtype))
    function = native_function("w4a16_linear", x.dtype, "ppppiiii")
    if function is None or not packed.is_contiguous():
        return NotImplemented
    x = x.contiguous()
    out = empty((len(x), len(packed)), x.dtype)
    function(
        out.data_ptr(), x.data_ptr(), packed.data_ptr(), scale.data_ptr(), len(x), len(packed),
        x.shape[1], scale.shape[1],
    )  # fmt: skip
    return out
