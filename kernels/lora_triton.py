"""Triton kernels of low-rank adapters: shrink to the rank, then expand and add.

A tile holds rows of one adapter. At few rows the shrinking is bound by reading x and `down`, so the
sums over the width of x are split among programs, and the expanding kernel adds the splits up.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmlab.kernels.common_triton import owner_of_tile

_ROWS, _WIDTH, _COLUMNS = 16, 128, 128
_SPLIT = 1024
"""Width of x that a program sums over."""


def add_lora(
    out: Tensor,
    x: Tensor,
    down: Tensor,
    up: Tensor,
    scale: Tensor,
    rows: Tensor,
    starts: Tensor,
    ranks: Tensor | None = None,
) -> None:
    """Launch; see lora.py. Adapters of a lower rank are multiplied with their zeros."""
    (N, width), (L, R, _), out_width = x.shape, down.shape, out.shape[1]
    splits = triton.cdiv(width, _SPLIT)
    narrow = torch.empty(splits, N, R, dtype=torch.float32, device=x.device)
    tiles, BR = N // _ROWS + L, max(16, triton.next_power_of_2(R))
    search = max(1, (L - 1).bit_length())
    _shrink_kernel[(tiles, splits)](
        x, down, narrow, rows, starts, N, width, L, *x.stride(), R=R, BR=BR, BM=_ROWS, BK=_WIDTH,
        SPLIT=_SPLIT, SEARCH=search,
    )  # fmt: skip
    _expand_kernel[(tiles, triton.cdiv(out_width, _COLUMNS))](
        narrow, up, scale, out, rows, starts, N, out_width, L, *up.stride(), out.stride(0),
        R=R, BR=BR, BM=_ROWS, BN=_COLUMNS, SPLITS=splits, SEARCH=search,
    )  # fmt: skip


@triton.jit
def _tile(starts, L, BM: tl.constexpr, SEARCH: tl.constexpr):
    """Return the adapter of this tile, and its places among the ordered rows with their mask."""
    adapter, number = owner_of_tile(starts, tl.program_id(0), L, BM, SEARCH)
    start, end = tl.load(starts + adapter), tl.load(starts + adapter + 1)
    first = start + number * BM
    places = first + tl.arange(0, BM)
    return adapter, first, places, (places >= start) & (places < end), end


@triton.jit
def _shrink_kernel(
    x_ptr, down_ptr, narrow_ptr, rows_ptr, starts, N, width, L, x_row, x_col,
    R: tl.constexpr, BR: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr,
    SEARCH: tl.constexpr,
):  # fmt: skip
    adapter, first, places, is_row, end = _tile(starts, L, BM, SEARCH)
    if first >= end:
        return
    split = tl.program_id(1)
    rows = tl.load(rows_ptr + places, mask=is_row, other=0)
    ranks = tl.arange(0, BR)
    base = down_ptr + adapter.to(tl.int64) * R * width
    acc = tl.zeros([BM, BR], tl.float32)
    for k in range(split * SPLIT, tl.minimum((split + 1) * SPLIT, width), BK):
        at = k + tl.arange(0, BK)
        x = tl.load(
            x_ptr + rows[:, None] * x_row + at[None, :] * x_col,
            mask=is_row[:, None] & (at < width)[None, :], other=0.0,
        )  # fmt: skip
        down = tl.load(
            base + ranks[None, :] * width + at[:, None],
            mask=(ranks < R)[None, :] & (at < width)[:, None], other=0.0,
        )  # fmt: skip
        acc = tl.dot(x, down.to(x.dtype), acc, input_precision="ieee")
    out = narrow_ptr + (split.to(tl.int64) * N + places[:, None]) * R + ranks[None, :]
    tl.store(out, acc, mask=is_row[:, None] & (ranks < R)[None, :])


@triton.jit
def _expand_kernel(
    narrow_ptr, up_ptr, scale_ptr, out_ptr, rows_ptr, starts, N, out_width, L,
    up_adapter, up_col, up_rank, out_row,
    R: tl.constexpr, BR: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, SPLITS: tl.constexpr,
    SEARCH: tl.constexpr,
):  # fmt: skip
    adapter, first, places, is_row, end = _tile(starts, L, BM, SEARCH)
    if first >= end:
        return
    rows = tl.load(rows_ptr + places, mask=is_row, other=0)
    ranks, cols = tl.arange(0, BR), tl.program_id(1) * BN + tl.arange(0, BN)
    inside = is_row[:, None] & (ranks < R)[None, :]
    part = narrow_ptr + places.to(tl.int64)[:, None] * R + ranks[None, :]
    narrow = tl.zeros([BM, BR], tl.float32)
    for _ in range(SPLITS):
        narrow += tl.load(part, mask=inside, other=0.0)
        part += tl.cast(N, tl.int64) * R
    up = tl.load(
        up_ptr + adapter.to(tl.int64) * up_adapter + cols[None, :] * up_col
        + ranks[:, None] * up_rank,
        mask=(cols < out_width)[None, :] & (ranks < R)[:, None], other=0.0,
    )  # fmt: skip
    added = tl.dot(narrow, up.to(tl.float32), input_precision="ieee")
    out = out_ptr + rows[:, None] * out_row + cols[None, :]
    inside = is_row[:, None] & (cols < out_width)[None, :]
    added = tl.load(out, mask=inside, other=0.0).to(tl.float32) + added * tl.load(
        scale_ptr + adapter
    )
    tl.store(out, added.to(out_ptr.dtype.element_ty), mask=inside)
