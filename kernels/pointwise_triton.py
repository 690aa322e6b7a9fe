"""Triton kernels of SwiGLU and rotary positions."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmlab.kernels.common_triton import accumulator
from llmlab.kernels.precision import wide_dtype

_BLOCK = 2048


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Launch; see pointwise.py."""
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    size = gate.numel()
    _swiglu_kernel[(triton.cdiv(size, _BLOCK),)](
        gate, up, out, size, BLOCK=_BLOCK, WIDE=accumulator(wide_dtype(gate)), num_warps=8
    )
    return out


def swiglu_backward(d_out: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Launch; see pointwise.py."""
    d_out, gate, up = d_out.contiguous(), gate.contiguous(), up.contiguous()
    d_gate, d_up = torch.empty_like(gate), torch.empty_like(gate)
    size = gate.numel()
    _swiglu_backward_kernel[(triton.cdiv(size, _BLOCK),)](
        d_out,
        gate,
        up,
        d_gate,
        d_up,
        size,
        BLOCK=_BLOCK,
        WIDE=accumulator(wide_dtype(gate)),
        num_warps=8,
    )
    return d_gate, d_up


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Launch; see pointwise.py."""
    B, H, T, D = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    cos, sin = (angle.expand(B, 1, T, D) for angle in (cos, sin))
    half = triton.next_power_of_2(D // 2)
    tokens = max(1, min(64, 4096 // half))
    _rotate_kernel[(triton.cdiv(T, tokens), H, B)](
        x, cos, sin, out, T, D // 2, *x.stride(), cos.stride(0), cos.stride(2), cos.stride(3),
        sin.stride(0), sin.stride(2), sin.stride(3), *out.stride()[:3],
        TOKENS=tokens, HALF=half, WIDE=accumulator(wide_dtype(x)),
    )  # fmt: skip
    return out


@triton.jit
def _swiglu_kernel(gate_ptr, up_ptr, out_ptr, size, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gate_ptr + at, mask=at < size, other=0.0).to(WIDE)
    up = tl.load(up_ptr + at, mask=at < size, other=0.0).to(WIDE)
    own = out_ptr.dtype.element_ty
    out = (gate * tl.sigmoid(gate)).to(own).to(WIDE) * up
    tl.store(out_ptr + at, out.to(own), mask=at < size)


@triton.jit
def _swiglu_backward_kernel(
    d_out_ptr, gate_ptr, up_ptr, d_gate_ptr, d_up_ptr, size, BLOCK: tl.constexpr, WIDE: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    d_out = tl.load(d_out_ptr + at, mask=inside, other=0.0).to(WIDE)
    gate = tl.load(gate_ptr + at, mask=inside, other=0.0).to(WIDE)
    up = tl.load(up_ptr + at, mask=inside, other=0.0).to(WIDE)
    sigmoid = tl.sigmoid(gate)
    d_gate = d_out * up * sigmoid * (1 + gate * (1 - sigmoid))
    d_up = d_out * gate * sigmoid
    tl.store(d_gate_ptr + at, d_gate.to(d_gate_ptr.dtype.element_ty), mask=inside)
    tl.store(d_up_ptr + at, d_up.to(d_up_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _rounded(x, own: tl.constexpr, WIDE: tl.constexpr):
    return x.to(own).to(WIDE)


@triton.jit
def _rotate_kernel(
    x_ptr, cos_ptr, sin_ptr, out_ptr, T, half, x_b, x_h, x_t, x_d, cos_b, cos_t, cos_d,
    sin_b, sin_t, sin_d, out_b, out_h, out_t,
    TOKENS: tl.constexpr, HALF: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    tokens = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    head, row = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    places = tl.arange(0, HALF)
    inside = (tokens < T)[:, None] & (places < half)[None, :]
    token, place = tokens.to(tl.int64)[:, None], places[None, :]
    x_first = x_ptr + row * x_b + head * x_h + token * x_t + place * x_d
    first = tl.load(x_first, mask=inside, other=0.0).to(WIDE)
    second = tl.load(x_first + half * x_d, mask=inside, other=0.0).to(WIDE)
    cos_first = cos_ptr + row * cos_b + token * cos_t + place * cos_d
    sin_first = sin_ptr + row * sin_b + token * sin_t + place * sin_d
    cos = tl.load(cos_first, mask=inside, other=0.0).to(WIDE)
    sin = tl.load(sin_first, mask=inside, other=0.0).to(WIDE)
    out = out_ptr + row * out_b + head * out_h + token * out_t + place
    own = out_ptr.dtype.element_ty
    turned = _rounded(first * cos, own, WIDE) - _rounded(second * sin, own, WIDE)
    tl.store(out, turned.to(own), mask=inside)
    turned = _rounded(second * cos, own, WIDE) + _rounded(first * sin, own, WIDE)
    tl.store(out + half, turned.to(own), mask=inside)
