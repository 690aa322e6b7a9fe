"""Cross-entropy of a linear head without holding all its logits.

The logits of a few hundred positions at a time are turned into their loss and, while they are at
hand, into the gradients; none is kept for the backward pass, which only scales. For N positions and
V tokens that saves about 10·N·V bytes, and on a CPU, where every pass over such a matrix
costs as much as the products, a third of the time at small vocabularies.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
"""The label that is not scored."""

_CHUNK_LOGITS = 2**22
_MIN_CHUNK_LEN = 512


def head_loss_sum(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Return the summed cross-entropy in nats of `hidden @ weight.T` against `labels`.

    Products are in the dtype of autocast where it is on, else in that of `hidden`; the softmax, the
    sum and the accumulation of the weight's gradient over chunks are float32. Gradients can be
    taken once, not of themselves.

    Args:
        hidden: (N, E).
        weight: (V, E).
        labels: (N,), int64; -100 is not scored.

    Returns:
        A float32 scalar.
    """
    wants_hidden = torch.is_grad_enabled() and hidden.requires_grad
    wants_weight = torch.is_grad_enabled() and weight.requires_grad
    if not (wants_hidden or wants_weight):
        return _loss_only(hidden, weight, labels)
    with torch.no_grad():
        total, hidden_grad, weight_grad = _loss_and_gradients(
            hidden, weight, labels, wants_hidden=wants_hidden, wants_weight=wants_weight
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
    linear = (x * gradient).sum(dtype=torch.float32)
    return value + (linear - linear.detach())


def _loss_only(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    total = hidden.new_zeros((), dtype=torch.float32)
    for part, wanted in _chunks(hidden, labels, weight.shape[0]):
        logits = F.linear(part, weight).float()
        total += F.cross_entropy(logits, wanted, ignore_index=IGNORED, reduction="sum")
    return total


def _loss_and_gradients(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, wants_hidden: bool, wants_weight: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    dtype = _product_dtype(hidden)
    narrow_weight = weight.to(dtype)
    hidden_grads = []
    weight_grad = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
    total = hidden.new_zeros((), dtype=torch.float32)
    for part, wanted in _chunks(hidden.to(dtype), labels, weight.shape[0]):
        loss, logits_grad = _loss_and_gradient((part @ narrow_weight.t()).float(), wanted)
        total += loss
        logits_grad = logits_grad.to(dtype)
        if wants_hidden:
            hidden_grads.append(logits_grad @ narrow_weight)
        if weight_grad is not None:
            weight_grad += logits_grad.t() @ part
    hidden_grad = torch.cat(hidden_grads).to(hidden.dtype) if wants_hidden else None
    return total, hidden_grad, None if weight_grad is None else weight_grad.to(weight.dtype)


def _loss_and_gradient(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed loss and its gradient, which takes the place of the logits (n, V)."""
    is_scored = (labels != IGNORED)[:, None]  # (n, 1)
    index = labels.clamp(min=0)[:, None]  # (n, 1)
    normaliser = logits.logsumexp(dim=-1, keepdim=True)  # (n, 1)
    loss = ((normaliser - logits.gather(1, index)) * is_scored).sum()
    gradient = logits.sub_(normaliser).exp_()  # the softmax
    gradient.scatter_add_(1, index, torch.full_like(normaliser, -1.0))
    return loss, gradient.mul_(is_scored)


def _product_dtype(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _chunks(hidden: Tensor, labels: Tensor, vocab_size: int) -> list[tuple[Tensor, Tensor]]:
    length = max(_MIN_CHUNK_LEN, _CHUNK_LOGITS // vocab_size)
    return list(zip(hidden.split(length), labels.split(length), strict=True))
