"""Linear layers with int8 weights: one scale for each row of a matrix, symmetric, no zero point.

Few rows of activations: the weights are what takes time, so only they are int8 (W8A16). Many rows:
products take the time, so the activations are rounded to int8 as well, a scale for each row
(W8A8); `int8_linear` chooses. Source: arXiv:2208.07339, without outliers.
"""

import torch
from torch import Tensor

from llmlab.kernels.op import define

_LARGEST = 127

_FEW_ROWS_CPU = 2
"""Rows up to which W8A16 is as fast as W8A8; at 4 it takes 1.1 to 1.6 times as long (measured)."""

_FEW_ROWS_GPU = 16
"""The same, presumed: tensor cores take at least 16 rows."""


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply by int8 weights, rounding the activations to int8 too when they are many rows.

    Where the gradient of x is wanted they are not rounded, for rounding has none.

    Args:
        x: (..., K).
        weight: (N, K), int8, from `quantize_rows`.
        scale: (N,), float32.
        bias: (N,), or None.

    Returns:
        (..., N), dtype of x.
    """
    rows = x.reshape(-1, x.shape[-1])  # (M, K)
    most = _FEW_ROWS_CPU if x.is_cpu else _FEW_ROWS_GPU
    if len(rows) <= most or (x.requires_grad and torch.is_grad_enabled()):
        out = w8a16_linear(rows, weight, scale)
    else:
        out = w8a8_linear(*quantize_rows(rows), weight, scale, x.dtype)
    if x.dim() != 2:
        out = out.view(*x.shape[:-1], len(weight))
    return out if bias is None else out + bias


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to int8.

    Args:
        x: (M, K), floating.

    Returns:
        (M, K) int8 and (M,) float32 with x ≈ int8 * scale; a row of zeros has scale 0.
    """
    return _quantize_rows(x)


def w8a8_linear(
    x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, dtype: torch.dtype
) -> Tensor:
    """Multiply int8 rows by int8 weights.

    Args:
        x: (M, K), int8.
        x_scale: (M,), float32.
        weight: (N, K), int8.
        scale: (N,), float32.
        dtype: of the result.

    Returns:
        (M, N); sums are exact.
    """
    return _w8a8_linear(x, x_scale, weight, scale, dtype)


def w8a16_linear(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Multiply floating rows by int8 weights.

    Args:
        x: (M, K).
        weight: (N, K), int8.
        scale: (N,), float32.

    Returns:
        (M, N), dtype of x; sums in float32.
    """
    return _w8a16_linear(x, weight, scale)


def quantize_rows_twin(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `quantize_rows` in plain PyTorch."""
    wide = x.float()
    scale = wide.abs().amax(-1) / _LARGEST  # (M,)
    inverse = torch.where(scale > 0, 1 / scale, 0.0)
    return (wide * inverse[:, None]).round().to(torch.int8), scale


def w8a8_linear_twin(
    x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, dtype: torch.dtype
) -> Tensor:
    """Compute `w8a8_linear` in plain PyTorch."""
    sums = torch._int_mm(x, weight.t())
    return (sums * x_scale[:, None] * scale).to(dtype)


def w8a16_linear_twin(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Compute `w8a16_linear` in plain PyTorch."""
    return ((x.float() @ weight.float().t()) * scale).to(x.dtype)


def _fake_quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty(x.shape[:1], dtype=torch.float32)


def _fake_w8a8(
    x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, dtype: torch.dtype
) -> Tensor:
    return x.new_empty(len(x), len(weight), dtype=dtype)


def _fake_w8a16(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return x.new_empty(len(x), len(weight))


_quantize_rows = define(
    "quantize_rows(Tensor x) -> (Tensor, Tensor)",
    twin=quantize_rows_twin,
    fake=_fake_quantize,
    kernel="int8_triton:quantize_rows",
    native="linear_native:quantize_rows",
)
_w8a8_linear = define(
    "w8a8_linear(Tensor x, Tensor x_scale, Tensor weight, Tensor scale, ScalarType dtype) "
    "-> Tensor",
    twin=w8a8_linear_twin,
    fake=_fake_w8a8,
    kernel="int8_triton:w8a8_linear",
    native="linear_native:w8a8_linear",
)
_w8a16_linear = define(
    "w8a16_linear(Tensor x, Tensor weight, Tensor scale) -> Tensor",
    twin=w8a16_linear_twin,
    fake=_fake_w8a16,
    kernel="int8_triton:w8a16_linear",
    native="linear_native:w8a16_linear",
)
