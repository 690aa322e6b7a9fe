"""RMSNorm, alone and after adding to the residual stream. Source: arXiv:1910.07467."""

import torch
from torch import Tensor

from llmlab.kernels.op import define
from llmlab.kernels.precision import wide_dtype


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Divide the last dimension by its root mean square and scale it by a weight.

    Statistics are in float32 (float64 where x is); the quotient is rounded before it is scaled, as
    models of Hugging Face do.

    Args:
        x: (..., E).
        weight: (E,).
        eps: added to the mean square.

    Returns:
        (..., E), of the dtype of x.
    """
    return _rms_norm(x, weight, eps)[0]


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Add x to the residual stream and normalise the sum.

    Args:
        x: (..., E).
        residual: (..., E).
        weight: (E,).
        eps: added to the mean square.

    Returns:
        The normalised sum and the sum, both (..., E).
    """
    out, total, _ = _add_rms_norm(x, residual, weight, eps)
    return out, total


def rms_norm_twin(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the result and the reciprocal root mean square (...)."""
    wide = x.to(wide_dtype(x))
    scale = torch.rsqrt(wide.square().mean(-1) + eps)
    return (wide * scale[..., None]).to(x.dtype) * weight.to(x.dtype), scale


def rms_norm_backward_twin(
    d_out: Tensor, x: Tensor, weight: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and weight."""
    wide = wide_dtype(x)
    normal = x.to(wide) * scale[..., None]  # (..., E)
    weighted = d_out.to(wide) * weight.to(x.dtype).to(wide)
    shared = (weighted * normal).mean(-1, keepdim=True)
    d_x = ((weighted - normal * shared) * scale[..., None]).to(x.dtype)
    d_weight = (d_out.to(wide) * normal).flatten(0, -2).sum(0).to(weight.dtype)
    return d_x, d_weight


def _add_rms_norm_twin(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    total = residual + x
    out, scale = rms_norm_twin(total, weight, eps)
    return out, total, scale


def _fake(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(
        x.shape[:-1], dtype=wide_dtype(x)
    )


def _fake_add(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, ...]:
    out, scale = _fake(x, weight, eps)
    return out, torch.empty_like(out), scale


def _fake_backward(
    d_out: Tensor, x: Tensor, weight: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(weight)


_rms_norm_backward = define(
    "rms_norm_backward(Tensor d_out, Tensor x, Tensor weight, Tensor scale) -> (Tensor, Tensor)",
    twin=rms_norm_backward_twin,
    fake=_fake_backward,
    kernel="norm_triton:rms_norm_backward",
)


def _keep(ctx, inputs, output) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight, output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, d_out, _):
    x, weight, scale = ctx.saved_tensors
    if d_out is None:
        return None, None, None
    return *_rms_norm_backward(d_out, x, weight, scale), None


def _keep_add(ctx, inputs, output) -> None:
    ctx.save_for_backward(output[1], inputs[2], output[2])
    ctx.set_materialize_grads(False)


def _backward_add(ctx, d_out, d_total, _):
    total, weight, scale = ctx.saved_tensors
    d_sum, d_weight = d_total, None
    if d_out is not None:
        d_sum, d_weight = _rms_norm_backward(d_out, total, weight, scale)
        d_sum = d_sum if d_total is None else d_sum + d_total
    return d_sum, d_sum, d_weight, None


_rms_norm = define(
    "rms_norm(Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)",
    twin=rms_norm_twin,
    fake=_fake,
    kernel="norm_triton:rms_norm",
    native="norm_native:rms_norm",
    backward=_backward,
    keep=_keep,
)
_add_rms_norm = define(
    "add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps) -> (Tensor, Tensor, Tensor)",
    twin=_add_rms_norm_twin,
    fake=_fake_add,
    kernel="norm_triton:add_rms_norm",
    backward=_backward_add,
    keep=_keep_add,
)
