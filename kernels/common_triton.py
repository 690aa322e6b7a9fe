"""What several Triton kernels share: accumulators, rounding to int8, whose tile this is."""

import functools

import torch
import triton
import triton.language as tl


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """Return Triton's name of a wide dtype."""
    return tl.float64 if dtype == torch.float64 else tl.float32


@functools.cache  # asked at every launch
def num_cores(device: torch.device) -> int:
    """Return how many programs run side by side; a few where they are interpreted."""
    if device.type != "cuda":
        return 8
    return torch.cuda.get_device_properties(device).multi_processor_count


def warps_of_row(block: int) -> int:
    """Return warps for a program that holds a row of so many numbers."""
    return min(max(block // 512, 1), 16)


@triton.jit
def int8_scale(x, axis: tl.constexpr):
    """Return what the largest magnitude along an axis is 127 of, and its reciprocal or 0."""
    scale = tl.max(tl.abs(x), axis) / 127
    return scale, tl.where(scale > 0, 1 / tl.maximum(scale, 1e-38), 0.0)


@triton.jit
def round_to_int8(x):
    """Round to the nearest, ties to even, as PyTorch does."""
    low = tl.floor(x)
    rest = x - low
    is_odd = low - 2 * tl.floor(low / 2) == 1
    return (low + ((rest > 0.5) | ((rest == 0.5) & is_odd))).to(tl.int8)


@triton.jit
def owner_of_tile(starts, tile, count, TILE: tl.constexpr, SEARCH: tl.constexpr):
    """Return which of `count` runs of rows a tile belongs to, and the tile's number in it.

    The tiles of run i begin at starts[i] // TILE + i: always room enough, none shared.
    """
    low, high = 0, count
    for _ in range(SEARCH):
        middle = (low + high) // 2
        begins = tl.load(starts + middle) // TILE + middle
        low = tl.where(begins <= tile, middle, low)
        high = tl.where(begins <= tile, high, middle)
    return low, tile - (tl.load(starts + low) // TILE + low)
