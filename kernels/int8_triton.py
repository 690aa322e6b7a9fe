"""Triton kernels of int8 linear layers.

W8A16 at few rows is bound by reading the weights: the sums over K are split over several programs
until all cores read, and added up in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmlab.kernels.common_triton import int8_scale, num_cores, round_to_int8, warps_of_row
from llmlab.kernels.tiles import tile

_MOST_SPLITS = 16


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Launch; see int8.py."""
    num_rows, width = x.shape
    out = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scale = torch.empty(num_rows, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(width)
    if num_rows:
        _quantize_rows_kernel[(num_rows,)](
            x, out, scale, width, x.stride(0), x.stride(1), BLOCK=block,
            num_warps=warps_of_row(block),
        )  # fmt: skip
    return out, scale


def w8a8_linear(
    x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, dtype: torch.dtype
) -> Tensor:
    """Launch; see int8.py."""
    (M, K), N = x.shape, len(weight)
    out = torch.empty(M, N, dtype=dtype, device=x.device)
    op = "w8a8" if M > 256 else "w8a8_few_rows"
    BM, BN, BK, num_warps, num_stages = tile(op, x)  # blocks of rows, of columns, of K
    _w8a8_kernel[(triton.cdiv(M, BM) * triton.cdiv(N, BN),)](
        x, x_scale, weight, scale, out, M, N, K, x.stride(0), weight.stride(0),
        BM=BM, BN=BN, BK=BK, WHOLE=K % BK == 0, num_warps=num_warps, num_stages=num_stages,
    )  # fmt: skip
    return out


def w8a16_linear(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Launch; see int8.py."""
    (M, K), N = x.shape, len(weight)
    out = torch.empty(M, N, dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    BN, BK, num_warps, num_stages = tile("w8a16", x)  # blocks of columns, of K
    BM = max(16, min(64, triton.next_power_of_2(M)))
    tiles = triton.cdiv(M, BM) * triton.cdiv(N, BN)
    splits = min(_MOST_SPLITS, triton.cdiv(K, BK), max(1, 2 * num_cores(x.device) // tiles))
    steps = triton.cdiv(triton.cdiv(K, BK), splits)
    sums = torch.empty(splits, M, N, dtype=torch.float32, device=x.device)
    _w8a16_kernel[(tiles, splits)](
        x, weight, scale, out if splits == 1 else sums, M, N, K, steps, *x.stride(),
        weight.stride(0), BM=BM, BN=BN, BK=BK, SCALED=splits == 1,
        num_warps=num_warps, num_stages=num_stages,
    )  # fmt: skip
    if splits > 1:
        block = 1024
        _add_splits_kernel[(triton.cdiv(M * N, block),)](
            sums, scale, out, M * N, N, SPLITS=splits, BLOCK=block
        )
    return out


@triton.jit
def _quantize_rows_kernel(x_ptr, out_ptr, scale_ptr, width, x_row, x_col, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * x_row + cols * x_col, mask=cols < width, other=0.0).to(tl.float32)
    scale, inverse = int8_scale(x, 0)
    tl.store(out_ptr + row * width + cols, round_to_int8(x * inverse), mask=cols < width)
    tl.store(scale_ptr + row, scale)


@triton.jit
def _w8a8_kernel(
    x_ptr, x_scale_ptr, weight_ptr, scale_ptr, out_ptr, M, N, K, x_row, w_row,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    # Neighbouring programs share columns of weights, which then stay in the cache.
    num_m = tl.cdiv(M, BM)
    first_m, first_n = tl.program_id(0) % num_m * BM, tl.program_id(0) // num_m * BN
    rows, cols = first_m + tl.arange(0, BM), first_n + tl.arange(0, BN)
    ks = tl.arange(0, BK)
    x_at = x_ptr + (rows % M).to(tl.int64)[:, None] * x_row + ks[None, :]
    w_at = weight_ptr + (cols % N).to(tl.int64)[None, :] * w_row + ks[:, None]
    acc = tl.zeros([BM, BN], tl.int32)
    for k in range(0, K, BK):
        if WHOLE:
            x, w = tl.load(x_at), tl.load(w_at)
        else:
            x = tl.load(x_at, mask=ks[None, :] < K - k, other=0)
            w = tl.load(w_at, mask=ks[:, None] < K - k, other=0)
        acc = tl.dot(x, w, acc, out_dtype=tl.int32)
        x_at += BK
        w_at += BK
    x_scale = tl.load(x_scale_ptr + rows, mask=rows < M, other=0.0)
    scale = tl.load(scale_ptr + cols, mask=cols < N, other=0.0)
    out = acc.to(tl.float32) * x_scale[:, None] * scale[None, :]
    inside = (rows < M)[:, None] & (cols < N)[None, :]
    places = out_ptr + rows.to(tl.int64)[:, None] * N + cols[None, :]
    tl.store(places, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _w8a16_kernel(
    x_ptr, weight_ptr, scale_ptr, out_ptr, M, N, K, steps, x_row, x_col, w_row,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    num_m = tl.cdiv(M, BM)
    rows = tl.program_id(0) % num_m * BM + tl.arange(0, BM)
    cols = tl.program_id(0) // num_m * BN + tl.arange(0, BN)
    split = tl.program_id(1)
    first = split * steps * BK
    acc = tl.zeros([BM, BN], tl.float32)
    for k in range(first, tl.minimum(first + steps * BK, K), BK):
        ks = k + tl.arange(0, BK)
        x = tl.load(
            x_ptr + rows.to(tl.int64)[:, None] * x_row + ks[None, :] * x_col,
            mask=(rows < M)[:, None] & (ks < K)[None, :],
            other=0.0,
        )
        w = tl.load(
            weight_ptr + cols.to(tl.int64)[None, :] * w_row + ks[:, None],
            mask=(cols < N)[None, :] & (ks < K)[:, None],
            other=0,
        )
        acc = tl.dot(x, w.to(x.dtype), acc, input_precision="ieee")
    if SCALED:
        acc *= tl.load(scale_ptr + cols, mask=cols < N, other=0.0)[None, :]
    inside = (rows < M)[:, None] & (cols < N)[None, :]
    places = (split.to(tl.int64) * M + rows[:, None]) * N + cols[None, :]
    tl.store(out_ptr + places, acc.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _add_splits_kernel(
    sums_ptr, scale_ptr, out_ptr, size, N, SPLITS: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(sums_ptr + split * size.to(tl.int64) + at, mask=at < size, other=0.0)
    total *= tl.load(scale_ptr + at % N, mask=at < size, other=0.0)
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=at < size)
