"""One gradient: accumulated over micro-batches, normalised by the tokens scored, checked, clipped.

Not here: the update and the learning rate (loop.py, schedule.py), gradients that are finite but
far too large (spikes.py).
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from llmlab.data.batch import IGNORED, Batch
from llmlab.errors import DataError, ModelError
from llmlab.model.language_model import LanguageModel
from llmlab.training.compilation import LossSum
from llmlab.training.distributed import everyones, exchange, sum_over_ranks, whole, world_size


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
    """Add the gradient of the mean loss over every scored label of all micro-batches of all ranks.

    A mean of micro-batch means would weigh tokens by how full their micro-batch is; this does not.

    Args:
        loss_sum: the model's, or its compiled twin; on several ranks, one that exchanges gradients.
        micro_batches: each (B, T), as many on every rank.
        device: where the model is.
        dtype: compute dtype.

    Returns:
        That mean loss, in nats, the same on every rank.

    Raises:
        DataError: no label is scored.
    """
    scored, size = sum_over_ranks(
        sum(int((batch.labels != IGNORED).sum()) for batch in micro_batches),
        sum(batch.labels.numel() for batch in micro_batches),
    )
    if scored == 0:
        raise DataError(
            f"0 of {size:.0f} labels are scored; all are {IGNORED}: check what the loss mask "
            "leaves in, or raise the context length"
        )
    losses = torch.zeros((), device=device)
    for number, batch in enumerate(micro_batches, start=1):
        with exchange(loss_sum, last=number == len(micro_batches)):
            with autocast(device, dtype):
                loss, _ = loss_sum(*batch.to(device).arguments)
            # The ranks' gradients are averaged: this makes it their sum over all scored labels.
            (loss / (scored / world_size())).backward()
        losses += loss.detach()
    return sum_over_ranks(float(losses))[0] / scored


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
    norm = whole(nn.utils.get_total_norm(p.grad for p in parameters.values() if p.grad is not None))
    if not math.isfinite(loss):
        raise ModelError(f"the loss is {loss}")
    if not math.isfinite(norm):
        raise ModelError(f"the gradient of {_not_finite(parameters)} is not finite")
    if grad_clip:
        nn.utils.clip_grads_with_norm_(parameters.values(), grad_clip, norm)
    return float(norm)


def first_not_finite(
    model: LanguageModel, micro_batches: Sequence[Batch], *, device: torch.device, dtype: str
) -> str:
    """Say where numbers that are not finite begin, by going through the model once more.

    Args:
        model: all ranks call this together; each sees its own share of a sharded weight.
        micro_batches: of the step at hand, each (B, T).
        device: where the model is.
        dtype: compute dtype.

    Returns:
        A part of a sentence: the first weight that is not finite, else the first layer whose
        output is not, on the first rank that has one; empty when all are.
    """
    weights = [name for name, p in model.named_parameters() if not _local(p).isfinite().all()]
    outputs: list[str] = []

    def look(name: str, output: object) -> None:
        tensors = output if isinstance(output, tuple) else (output,)
        if any(isinstance(t, Tensor) and not t.isfinite().all() for t in tensors):
            outputs.append(name)

    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: look(name, output))
        for name, module in model.named_modules()
        if name
    ]
    try:
        with torch.no_grad(), autocast(device, dtype):
            for batch in micro_batches:
                model.loss_sum(*batch.to(device).arguments)
    finally:
        for hook in hooks:
            hook.remove()
    found = f", first in the output of {outputs[0]}" if outputs else ""
    if weights:
        found = f", and so is the weight {weights[0]}"
    ranks = enumerate(everyones(found))
    return next((text + _on_rank(number) for number, text in ranks if text), "")


def _on_rank(number: int) -> str:
    return f" on rank {number}" if world_size() > 1 else ""


def _not_finite(parameters: Mapping[str, nn.Parameter]) -> str:
    for name, parameter in parameters.items():
        if parameter.grad is not None and not _local(parameter.grad).isfinite().all():
            return name
    return "all parameters together"


def _local(tensor: Tensor) -> Tensor:
    """This rank's share of a tensor; looking at it needs no other rank."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
