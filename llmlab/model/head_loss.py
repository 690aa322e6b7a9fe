"""Cross-entropy of a linear head without holding all its logits.

The logits of a few hundred positions at a time are turned into their loss and, while they are at
hand, into the gradients; none is kept for the backward pass, which only scales. For N positions and
V tokens that saves about 10·N·V bytes, and on a CPU, where every pass over such a matrix
costs as much as the products, a third of the time at small vocabularies.

The z-loss keeps the softmax's normaliser near 1, so that logits do not drift: z_loss times its
squared logarithm (arXiv:2204.02311, section 5). It is part of the gradient and not of the value.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.model.precision import product_dtype

IGNORED = -100
"""The label that is not scored."""

_CHUNK_LOGITS = 2**22
_MIN_CHUNK_LEN = 512


def head_loss_sum(hidden: Tensor, weight: Tensor, labels: Tensor, *, z_loss: float = 0.0) -> Tensor:
    """Return the summed cross-entropy in nats of `hidden @ weight.T` against `labels`.

    Products are in the dtype of autocast where it is on, else in that of `hidden`; the softmax, the
    sum and the accumulation of the weight's gradient over chunks are float32. Gradients can be
    taken once, not of themselves.

    Args:
        hidden: (N, E).
        weight: (V, E).
        labels: (N,), int64; -100 is not scored.
        z_loss: weight of the squared logarithm of the normaliser, of scored positions, in the
            gradient; 1e-4 is usual, 0 none.

    Returns:
        A float32 scalar; float64 where the inputs are.
    """
    wants_hidden = torch.is_grad_enabled() and hidden.requires_grad
    wants_weight = torch.is_grad_enabled() and weight.requires_grad
    if not (wants_hidden or wants_weight):
        return _loss_only(hidden, weight, labels)
    with torch.no_grad():
        total, hidden_grad, weight_grad = _loss_and_gradients(
            hidden, weight, labels, z_loss, wants_hidden=wants_hidden, wants_weight=wants_weight
        )
    if hidden_grad is not None:
        total = _with_gradient(total, hidden, hidden_grad)
    if weight_grad is not None:
        total = _with_gradient(total, weight, weight_grad)
    return total


def _with_gradient(value: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
    """Return `value` as it is, with d value / d x = gradient for autograd.

    An autograd.Function would say the same, but torch.compile warns about every one.
    """
    linear = (x * gradient).sum(dtype=_wide(x.dtype))
    return value + (linear - linear.detach())


def _loss_only(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    total = hidden.new_zeros((), dtype=_wide(hidden.dtype))
    for part, wanted in _chunks(hidden, labels, weight.shape[0]):
        logits = F.linear(part, weight)
        logits = logits.to(_wide(logits.dtype))
        total += F.cross_entropy(logits, wanted, ignore_index=IGNORED, reduction="sum")
    return total


def _loss_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    z_loss: float,
    *,
    wants_hidden: bool,
    wants_weight: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    dtype = product_dtype(hidden)
    narrow_weight = weight.to(dtype)
    hidden_grads = []
    weight_grad = torch.zeros_like(weight, dtype=_wide(weight.dtype)) if wants_weight else None
    total = hidden.new_zeros((), dtype=_wide(hidden.dtype))
    for part, wanted in _chunks(hidden.to(dtype), labels, weight.shape[0]):
        logits = (part @ narrow_weight.t()).to(_wide(dtype))  # (n, V)
        loss, logits_grad = _loss_and_gradient(logits, wanted, z_loss)
        total += loss
        logits_grad = logits_grad.to(dtype)
        if wants_hidden:
            hidden_grads.append(logits_grad @ narrow_weight)
        if weight_grad is not None:
            weight_grad += logits_grad.t() @ part
    hidden_grad = torch.cat(hidden_grads).to(hidden.dtype) if wants_hidden else None
    return total, hidden_grad, None if weight_grad is None else weight_grad.to(weight.dtype)


def _loss_and_gradient(logits: Tensor, labels: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
    """Return the summed loss and its gradient, which takes the place of the logits (n, V)."""
    is_scored = (labels != IGNORED)[:, None]  # (n, 1)
    index = labels.clamp(min=0)[:, None]  # (n, 1)
    wanted = logits.gather(1, index)  # (n, 1)
    # In place, and each number exponentiated once: on a CPU every pass counts.
    highest = logits.amax(dim=-1, keepdim=True)
    exponentials = logits.sub_(highest).exp_()
    sums = exponentials.sum(dim=-1, keepdim=True)
    normaliser = highest + sums.log()
    loss = ((normaliser - wanted) * is_scored).sum()
    scale = is_scored / sums  # the softmax, of scored positions
    if z_loss:
        scale *= 1 + 2 * z_loss * normaliser  # d normaliser / d logits is the softmax
    gradient = exponentials.mul_(scale)
    return loss, gradient.scatter_add_(1, index, -is_scored.to(gradient.dtype))


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return what sums over such numbers are in: float32, or float64 where they are."""
    return torch.promote_types(dtype, torch.float32)


def _chunks(hidden: Tensor, labels: Tensor, vocab_size: int) -> list[tuple[Tensor, Tensor]]:
    length = max(_MIN_CHUNK_LEN, _CHUNK_LOGITS // vocab_size)
    return list(zip(hidden.split(length), labels.split(length), strict=True))
