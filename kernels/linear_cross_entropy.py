"""Cross-entropy of a linear head without holding all its logits.

The logits of some positions at a time are turned into their loss and, while they are at hand, into
the gradients; none is kept for the backward pass, which only scales. For N positions and V tokens
that saves about 10·N·V bytes, and on a CPU, where every pass over such a matrix costs as
much as the products, a third of the time at small vocabularies.

The z-loss keeps the softmax's normaliser near 1, so that logits do not drift: z_loss times its
squared logarithm (arXiv:2204.02311, section 5). It is part of the gradient and not of the value.
Gradients in the forward pass: arXiv:2410.10989.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.kernels.op import define
from llmlab.kernels.precision import product_dtype, wide_dtype

IGNORED = -100
"""The label that is not scored, unless another is named."""

_CHUNK_LOGITS = {"cpu": 2**22, "cuda": 2**27}
"""Logits held at once: they should stay in a CPU's cache, and fill a GPU's cores."""

_MIN_CHUNK_LEN = 512


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = IGNORED,
    softcap: float | None = None,
    z_loss: float = 0.0,
) -> Tensor:
    """Return the summed cross-entropy in nats of `hidden @ weight.T` against `labels`.

    Products are in the dtype of autocast where it is on, else in that of `hidden`; the softmax, the
    sum and the accumulation of the weight's gradient over chunks are float32. Gradients can be
    taken once, not of themselves.

    Args:
        hidden: (N, E).
        weight: (V, E).
        labels: (N,), int64.
        ignore_index: the label that is not scored.
        softcap: logits are softcap * tanh(logit / softcap); None leaves them.
        z_loss: weight of the squared logarithm of the normaliser, of scored positions, in the
            gradient; 1e-4 is usual, 0 none.

    Returns:
        A float32 scalar; float64 where the inputs are.
    """
    wants_hidden = torch.is_grad_enabled() and hidden.requires_grad
    wants_weight = torch.is_grad_enabled() and weight.requires_grad
    cap = softcap or 0.0
    if not (wants_hidden or wants_weight):
        return _loss_only(hidden, weight, labels, ignore_index, cap)
    with torch.no_grad():
        total, hidden_grad, weight_grad = _loss_and_gradients(
            hidden,
            weight,
            labels,
            ignore_index,
            cap,
            z_loss,
            wants_hidden=wants_hidden,
            wants_weight=wants_weight,
        )
    if hidden_grad is not None:
        total = _with_gradient(total, hidden, hidden_grad)
    if weight_grad is not None:
        total = _with_gradient(total, weight, weight_grad)
    return total


def cross_entropy_twin(
    logits: Tensor, labels: Tensor, ignore_index: int, softcap: float, z_loss: float
) -> Tensor:
    """Return the loss of each row (n,), float32; its gradient takes the place of the logits (n, V).

    In place, and each number exponentiated once: on a CPU every pass counts.
    """
    is_scored = (labels != ignore_index)[:, None]  # (n, 1)
    index = torch.where(is_scored[:, 0], labels, 0)[:, None]  # (n, 1)
    wide = logits.to(wide_dtype(logits))
    slope = None
    if softcap:
        tanh = torch.tanh(wide / softcap)
        wide, slope = softcap * tanh, 1 - tanh.square()
    wanted = wide.gather(1, index)  # (n, 1)
    highest = wide.amax(dim=-1, keepdim=True)
    exponentials = wide.sub_(highest).exp_()
    sums = exponentials.sum(dim=-1, keepdim=True)
    normaliser = highest + sums.log()
    scale = is_scored / sums  # the softmax, of scored positions
    if z_loss:
        scale *= 1 + 2 * z_loss * normaliser  # d normaliser / d logits is the softmax
    gradient = exponentials.mul_(scale)
    gradient.scatter_add_(1, index, -is_scored.to(gradient.dtype))
    if slope is not None:
        gradient *= slope
    if gradient is not logits:
        logits.copy_(gradient)
    return ((normaliser - wanted) * is_scored)[:, 0]


def _with_gradient(value: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
    """Return `value` as it is, with d value / d x = gradient for autograd.

    An autograd.Function would say the same, but torch.compile warns about every one.
    """
    linear = (x * gradient).sum(dtype=wide_dtype(x))
    return value + (linear - linear.detach())


def _loss_only(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    ignore_index: int,
    softcap: float,
) -> Tensor:
    total = hidden.new_zeros((), dtype=wide_dtype(hidden))
    for part, wanted in _chunks(hidden, labels, weight.shape[0]):
        logits = F.linear(part, weight)
        logits = logits.to(wide_dtype(logits))
        if softcap:
            logits = softcap * torch.tanh(logits / softcap)
        total += F.cross_entropy(logits, wanted, ignore_index=ignore_index, reduction="sum")
    return total


def _loss_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    ignore_index: int,
    softcap: float,
    z_loss: float,
    *,
    wants_hidden: bool,
    wants_weight: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    dtype = product_dtype(hidden)
    narrow_weight = weight.to(dtype)
    hidden_grads = []
    weight_grad = torch.zeros_like(weight, dtype=wide_dtype(weight)) if wants_weight else None
    total = hidden.new_zeros((), dtype=wide_dtype(hidden))
    for part, wanted in _chunks(hidden.to(dtype), labels, weight.shape[0]):
        logits = part @ narrow_weight.t()  # (n, V), then their gradient
        total += _cross_entropy(logits, wanted, ignore_index, softcap, z_loss).sum()
        if wants_hidden:
            hidden_grads.append(logits @ narrow_weight)
        if weight_grad is not None:
            weight_grad += logits.t() @ part
    hidden_grad = torch.cat(hidden_grads).to(hidden.dtype) if wants_hidden else None
    return total, hidden_grad, None if weight_grad is None else weight_grad.to(weight.dtype)


def _chunks(hidden: Tensor, labels: Tensor, vocab_size: int) -> list[tuple[Tensor, Tensor]]:
    most = _CHUNK_LOGITS.get(hidden.device.type, _CHUNK_LOGITS["cuda"])
    length = max(_MIN_CHUNK_LEN, most // vocab_size)
    return list(zip(hidden.split(length), labels.split(length), strict=True))


def _fake(
    logits: Tensor, labels: Tensor, ignore_index: int, softcap: float, z_loss: float
) -> Tensor:
    return logits.new_empty(labels.shape, dtype=wide_dtype(logits))


_cross_entropy = define(
    "cross_entropy(Tensor(a!) logits, Tensor labels, int ignore_index, float softcap, "
    "float z_loss) -> Tensor",
    twin=cross_entropy_twin,
    fake=_fake,
    kernel="linear_cross_entropy_triton:cross_entropy",
)
