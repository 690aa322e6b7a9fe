"""Linear layers with int4 weights: a scale for each group of weights in a row, symmetric.

Two weights share a byte: the even one is the low half. Values are -7 to 7, kept with 8 added.
"""

import torch
from torch import Tensor

from llmlab.kernels.op import define

_LARGEST = 7
_OFFSET = 8


def quantize_groups(weight: Tensor, group_size: int = 64) -> tuple[Tensor, Tensor]:
    """Round each group of a row to int4.

    Args:
        weight: (N, K), floating.
        group_size: weights that share a scale; even, and divides K.

    Returns:
        (N, K / 2) uint8 and (N, K / group_size) float32.

    Raises:
        ValueError: group_size is odd or does not divide K.
    """
    N, K = weight.shape
    if group_size < 2 or group_size % 2 or K % group_size:
        raise ValueError(f"group_size={group_size} for rows of {K}; take an even divisor of it")
    groups = weight.float().view(N, -1, group_size)
    scale = groups.abs().amax(-1) / _LARGEST  # (N, K / group_size)
    inverse = torch.where(scale > 0, 1 / scale, 0.0)
    rounded = ((groups * inverse[..., None]).round() + _OFFSET).to(torch.uint8).view(N, K)
    return rounded[:, ::2] | (rounded[:, 1::2] << 4), scale


def dequantize_groups(packed: Tensor, scale: Tensor) -> Tensor:
    """Return the weights (N, K), float32, that `quantize_groups` packed."""
    halves = torch.stack((packed & 15, packed >> 4), dim=-1)  # (N, K / 2, 2)
    groups = (halves.float() - _OFFSET).view(len(packed), scale.shape[1], -1)
    return (groups * scale[..., None]).flatten(1)


def w4a16_linear(x: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    """Multiply floating rows by int4 weights.

    Args:
        x: (M, K).
        packed: (N, K / 2), uint8, from `quantize_groups`.
        scale: (N, K / group_size), float32.

    Returns:
        (M, N), dtype of x; sums in float32.
    """
    return _w4a16_linear(x, packed, scale)


def w4a16_linear_twin(x: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    """Compute `w4a16_linear` in plain PyTorch."""
    return (x.float() @ dequantize_groups(packed, scale).t()).to(x.dtype)


def _fake(x: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    return x.new_empty(len(x), len(packed))


_w4a16_linear = define(
    "w4a16_linear(Tensor x, Tensor packed, Tensor scale) -> Tensor",
    twin=w4a16_linear_twin,
    fake=_fake,
    kernel="int4_triton:w4a16_linear",
    native="linear_native:w4a16_linear",
)
