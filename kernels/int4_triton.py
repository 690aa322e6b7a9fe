"""Triton kernel of int4 linear layers.

A byte holds two neighbouring weights, so even and odd columns of x are multiplied apart: no weight
moves. A step takes one group, or the part of it that fits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmlab.kernels.tiles import tile


def w4a16_linear(x: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    """Launch; see int4.py."""
    (M, K), N = x.shape, len(packed)
    out = torch.empty(M, N, dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    group_bytes = K // scale.shape[1] // 2
    BM = max(16, min(64, triton.next_power_of_2(M)))
    BN, most_bytes, num_warps = tile("w4a16", x)  # block of columns, bytes of a row a step reads
    _w4a16_kernel[(triton.cdiv(M, BM), triton.cdiv(N, BN))](
        x, packed, scale, out, M, N, scale.shape[1], *x.stride(), packed.stride(0), scale.stride(0),
        GROUP_BYTES=group_bytes, BM=BM, BN=BN,
        BYTES=max(16, min(most_bytes, triton.next_power_of_2(group_bytes))), num_warps=num_warps,
    )  # fmt: skip
    return out


@triton.jit
def _w4a16_kernel(
    x_ptr, packed_ptr, scale_ptr, out_ptr, M, N, num_groups, x_row, x_col, w_row, s_row,
    GROUP_BYTES: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    rows = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    cols = (tl.program_id(1) * BN + tl.arange(0, BN)).to(tl.int64)
    acc = tl.zeros([BM, BN], tl.float32)
    for group in range(num_groups):
        sums = tl.zeros([BM, BN], tl.float32)
        for first in tl.static_range(0, GROUP_BYTES, BYTES):
            place = first + tl.arange(0, BYTES)
            inside = place < GROUP_BYTES
            at = group * GROUP_BYTES + place
            here = (rows < M)[:, None] & inside[None, :]
            x_at = x_ptr + rows[:, None] * x_row + 2 * at[None, :] * x_col
            even = tl.load(x_at, mask=here, other=0.0)
            odd = tl.load(x_at + x_col, mask=here, other=0.0)
            byte = tl.load(
                packed_ptr + cols[None, :] * w_row + at[:, None],
                mask=(cols < N)[None, :] & inside[:, None], other=0,
            )  # fmt: skip
            low = ((byte & 15).to(tl.int32) - 8).to(even.dtype)
            high = ((byte >> 4).to(tl.int32) - 8).to(even.dtype)
            sums = tl.dot(even, low, sums, input_precision="ieee")
            sums = tl.dot(odd, high, sums, input_precision="ieee")
        scale = tl.load(scale_ptr + cols * s_row + group, mask=cols < N, other=0.0)
        acc += sums * scale[None, :]
    inside = (rows < M)[:, None] & (cols < N)[None, :]
    out = out_ptr + rows[:, None] * N + cols[None, :]
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=inside)
