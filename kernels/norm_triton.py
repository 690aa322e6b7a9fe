"""Triton kernels of RMSNorm.

A program takes one row at a time, held in registers whole. The weight's gradient is summed in two
steps, over the rows of each program and then over programs, so that it does not depend on which
program comes first.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmlab.kernels.common_triton import accumulator, num_cores, warps_of_row
from llmlab.kernels.precision import wide_dtype

_PROGRAMS_PER_CORE = 4


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Launch; see norm.py."""
    out, _, scale = _forward(x, None, weight, eps)
    return out, scale


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch; see norm.py."""
    return _forward(x, residual, weight, eps)


def _forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    rows = x.reshape(-1, x.shape[-1])
    others = rows if residual is None else residual.reshape(rows.shape)
    num_rows, width = rows.shape
    wide = wide_dtype(x)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = out if residual is None else torch.empty_like(out)
    scale = torch.empty(x.shape[:-1], dtype=wide, device=x.device)
    block = triton.next_power_of_2(width)
    _rms_norm_forward[(num_rows,)](
        rows, others, weight, out, total, scale, rows.stride(0), rows.stride(1),
        others.stride(0), others.stride(1), width, eps,
        ADDS=residual is not None, BLOCK=block, WIDE=accumulator(wide),
        num_warps=warps_of_row(block),
    )  # fmt: skip
    return out, total, scale


def rms_norm_backward(
    d_out: Tensor, x: Tensor, weight: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Launch; see norm.py."""
    rows, d_rows = x.reshape(-1, x.shape[-1]), d_out.reshape(-1, x.shape[-1])
    num_rows, width = rows.shape
    d_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    programs = min(num_rows, num_cores(x.device) * _PROGRAMS_PER_CORE)
    partial = torch.empty(programs, width, dtype=scale.dtype, device=x.device)
    block = triton.next_power_of_2(width)
    _rms_norm_backward[(programs,)](
        d_rows, rows, weight, scale, d_x, partial, d_rows.stride(0), d_rows.stride(1),
        rows.stride(0), rows.stride(1), num_rows, width,
        BLOCK=block, WIDE=accumulator(scale.dtype), num_warps=warps_of_row(block),
    )  # fmt: skip
    return d_x, partial.sum(0).to(weight.dtype)


@triton.jit
def _rms_norm_forward(
    x_ptr, residual_ptr, weight_ptr, out_ptr, total_ptr, scale_ptr, x_row, x_col, r_row, r_col,
    width, eps, ADDS: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = cols < width
    x = tl.load(x_ptr + row * x_row + cols * x_col, mask=inside, other=0.0).to(WIDE)
    if ADDS:
        x += tl.load(residual_ptr + row * r_row + cols * r_col, mask=inside, other=0.0).to(WIDE)
        rounded = x.to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + row * width + cols, rounded, mask=inside)
        x = rounded.to(WIDE)
    scale = tl.rsqrt(tl.sum(x * x, 0) / width + eps)
    own = out_ptr.dtype.element_ty
    weight = tl.load(weight_ptr + cols, mask=inside, other=0.0).to(own).to(WIDE)
    out = ((x * scale).to(own).to(WIDE) * weight).to(own)
    tl.store(out_ptr + row * width + cols, out, mask=inside)
    tl.store(scale_ptr + row, scale)


@triton.jit
def _rms_norm_backward(
    d_out_ptr, x_ptr, weight_ptr, scale_ptr, d_x_ptr, partial_ptr, d_row, d_col, x_row, x_col,
    num_rows, width, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    program, programs = tl.program_id(0), tl.num_programs(0)
    cols = tl.arange(0, BLOCK)
    inside = cols < width
    own = d_x_ptr.dtype.element_ty
    weight = tl.load(weight_ptr + cols, mask=inside, other=0.0).to(own).to(WIDE)
    d_weight = tl.zeros([BLOCK], WIDE)
    for number in range(program, num_rows, programs):
        row = tl.cast(number, tl.int64)
        x = tl.load(x_ptr + row * x_row + cols * x_col, mask=inside, other=0.0).to(WIDE)
        d_out = tl.load(d_out_ptr + row * d_row + cols * d_col, mask=inside, other=0.0).to(WIDE)
        scale = tl.load(scale_ptr + row)
        normal = x * scale
        weighted = d_out * weight
        shared = tl.sum(weighted * normal, 0) / width
        d_x = ((weighted - normal * shared) * scale).to(d_x_ptr.dtype.element_ty)
        tl.store(d_x_ptr + row * width + cols, d_x, mask=inside)
        d_weight += d_out * normal
    tl.store(partial_ptr + program * width + cols, d_weight, mask=inside)
