"""SwiGLU and rotary positions: passes over memory that are one instead of five.

Sources: arXiv:2002.05202 (SwiGLU), arXiv:2104.09864 (rotary positions).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.kernels.op import define
from llmlab.kernels.precision import wide_dtype


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up; silu is rounded before it is multiplied, as in PyTorch.

    Args:
        gate: any shape.
        up: the same shape and dtype.
    """
    return _swiglu(gate, up)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair of numbers (d, d + D/2) of a head by its position's angle.

    Args:
        x: (B, H, T, D).
        cos: (B, 1, T, D) or (1, 1, T, D), both halves alike, of the dtype of x.
        sin: the same shape.

    Returns:
        (B, H, T, D), laid out in memory as x is if its heads are dense.
    """
    return _rotate(x, cos, sin)


def swiglu_twin(gate: Tensor, up: Tensor) -> Tensor:
    """Compute `swiglu` in plain PyTorch."""
    return F.silu(gate) * up


def swiglu_backward_twin(d_out: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of gate and up."""
    wide = wide_dtype(gate)
    g, d = gate.to(wide), d_out.to(wide)
    sigmoid = torch.sigmoid(g)
    d_gate = d * up.to(wide) * sigmoid * (1 + g * (1 - sigmoid))
    return d_gate.to(gate.dtype), (d * g * sigmoid).to(up.dtype)


def rotate_twin(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Compute `rotate` in plain PyTorch."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _fake_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return gate.new_empty(gate.shape)


def _fake_swiglu_backward(d_out: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), gate.new_empty(gate.shape)


def _fake_rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _keep_swiglu(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward_swiglu(ctx, d_out):
    return _swiglu_backward(d_out, *ctx.saved_tensors)


def _keep_rotate(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[1:])


def _backward_rotate(ctx, d_out):
    cos, sin = ctx.saved_tensors
    return _rotate(d_out, cos, -sin), None, None


_swiglu_backward = define(
    "swiglu_backward(Tensor d_out, Tensor gate, Tensor up) -> (Tensor, Tensor)",
    twin=swiglu_backward_twin,
    fake=_fake_swiglu_backward,
    kernel="pointwise_triton:swiglu_backward",
)
_swiglu = define(
    "swiglu(Tensor gate, Tensor up) -> Tensor",
    twin=swiglu_twin,
    fake=_fake_swiglu,
    kernel="pointwise_triton:swiglu",
    native="pointwise_native:swiglu",
    backward=_backward_swiglu,
    keep=_keep_swiglu,
)
_rotate = define(
    "rotate(Tensor x, Tensor cos, Tensor sin) -> Tensor",
    twin=rotate_twin,
    fake=_fake_rotate,
    kernel="pointwise_triton:rotate",
    native="pointwise_native:rotate",
    backward=_backward_rotate,
    keep=_keep_rotate,
)
