"""Linear layers with int4 weights: a scale for each group of weights in a row, no zero point.

Two weights share a byte: the even one is the low half. Values are -8 to 7, kept with 8 added. A
scale may be negative, so that the largest weight of a group can be -8 of them whatever its sign.
"""

import torch
from torch import Tensor

from llmlab.kernels.op import define

_OFFSET = 8

_TRIED = (0.78, 0.83, 0.88, 0.92, 0.96, 1.0, 1.04, 1.09, 8 / 7, 1.2)
"""Scales that are tried, in parts of what makes a group's largest weight -8."""


def quantize_groups(weight: Tensor, group_size: int = 32) -> tuple[Tensor, Tensor]:
    """Round each group of a row to int4, with the scale that leaves the least squared error.

    For each of a few scales the weights are rounded, and the scale is then fitted to what they were
    rounded to.

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
    extreme = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))  # (N, K / group_size, 1)
    least = torch.full_like(extreme, torch.inf)
    rounded, scale = torch.zeros_like(groups), torch.zeros_like(extreme)
    for part in _TRIED:
        inverse = torch.where(extreme == 0, 0.0, -_OFFSET / part / extreme)
        tried = (groups * inverse).round().clamp(-_OFFSET, _OFFSET - 1)
        square = tried.square().sum(-1, keepdim=True)
        fitted = (groups * tried).sum(-1, keepdim=True) / square.clamp(min=1)
        error = (groups - tried * fitted).square().sum(-1, keepdim=True)
        is_better = error < least
        least = torch.where(is_better, error, least)
        rounded = torch.where(is_better, tried, rounded)
        scale = torch.where(is_better, fitted, scale)
    bits = (rounded + _OFFSET).to(torch.uint8).view(N, K)
    return bits[:, ::2] | (bits[:, 1::2] << 4), scale[..., 0]


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
