"""One gradient: accumulated over micro-batches, normalised by the tokens scored, checked, clipped.

Not here: the update and the learning rate (loop.py, schedule.py).
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from llmlab.data.batch import IGNORED, Batch
from llmlab.errors import DataError, ModelError
from llmlab.training.compilation import LossSum


def autocast(device: torch.device, dtype: str) -> contextlib.AbstractContextManager[Any]:
    """Compute in `dtype` over float32 weights; nothing changes for float32."""
    if dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, getattr(torch, dtype))


def add_gradient(
    loss_sum: LossSum,
    micro_batches: Sequence[Batch],
    *,
    device: torch.device,
    dtype: str,
) -> float:
    """Add the gradient of the mean loss over every scored label of all micro-batches.

    A mean of micro-batch means would weigh tokens by how full their micro-batch is; this does not.

    Args:
        loss_sum: the model's, or its compiled twin.
        micro_batches: each (B, T).
        device: where the model is.
        dtype: compute dtype.

    Returns:
        That mean loss, in nats.

    Raises:
        DataError: no label is scored.
    """
    scored = sum(int((batch.labels != IGNORED).sum()) for batch in micro_batches)
    if scored == 0:
        size = sum(batch.labels.numel() for batch in micro_batches)
        raise DataError(
            f"0 of {size} labels are scored; all are {IGNORED}: check what the loss mask leaves "
            "in, or raise the context length"
        )
    total = torch.zeros((), device=device)
    for batch in micro_batches:
        with autocast(device, dtype):
            loss, _ = loss_sum(*batch.to(device).arguments)
        (loss / scored).backward()
        total += loss.detach()
    return float(total) / scored


def clip_gradient(parameters: Mapping[str, nn.Parameter], loss: float, grad_clip: float) -> float:
    """Scale the gradient down to an L2 norm of `grad_clip`, unless something is not finite.

    Args:
        parameters: the trained parameters by name.
        loss: the step's loss.
        grad_clip: largest norm; 0 leaves the gradient alone.

    Returns:
        The norm before clipping.

    Raises:
        ModelError: the loss or the gradient is not finite; names the parameter.
    """
    norm = nn.utils.get_total_norm(p.grad for p in parameters.values() if p.grad is not None)
    if not math.isfinite(loss):
        raise ModelError(f"the loss is {loss}")
    if not math.isfinite(norm):
        raise ModelError(f"the gradient of {_not_finite(parameters)} is not finite")
    if grad_clip:
        nn.utils.clip_grads_with_norm_(parameters.values(), grad_clip, norm)
    return float(norm)


def _not_finite(parameters: Mapping[str, nn.Parameter]) -> str:
    for name, parameter in parameters.items():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return name
    return "all parameters together"
