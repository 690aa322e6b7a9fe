"""How a run computes: in which dtype, compiled or not, and how fast the machine could go.

`auto` decides by measuring, once in a run: a resumed one stays with what it began with, or its
curve would bend. Rank 0 measures and decides for all.

Not here: compilation itself (compilation.py), the loop (loop.py).
"""

import contextlib
from dataclasses import dataclass

import torch
from torch import optim

from llmlab.data.batch import Batch
from llmlab.hardware import gemm_flops_per_s, pick_dtype
from llmlab.model.language_model import LanguageModel
from llmlab.track import OnProgress
from llmlab.training.checkpoint import Position
from llmlab.training.compilation import LossSum, compiled, missing_compiler, worth_compiling
from llmlab.training.distributed import on_first, world_size
from llmlab.training.hooks import BatchSource
from llmlab.training.plan import TrainingPlan
from llmlab.training.step import autocast


@dataclass(frozen=True, kw_only=True)
class Computing:
    """What was chosen."""

    dtype: str
    """Compute dtype, float32 or bfloat16."""

    loss_sum: LossSum
    """The model's, or its compiled twin."""

    compiled: bool
    """Whether it is the twin."""

    flops_per_s: float
    """What all ranks together reach on a large matrix product; 0 when nobody asked."""


def choose_computing(
    model: LanguageModel,
    optimizer: optim.Optimizer,
    batches: BatchSource,
    plan: TrainingPlan,
    *,
    began: Position | None,
    finished: bool,
    flops_per_token: float,
    on_progress: OnProgress,
) -> Computing:
    """Choose dtype and compilation; every rank must call it.

    Args:
        model: what is trained.
        optimizer: its gradients are cleared after a compiled model was tried out.
        batches: left where they are.
        plan: its `dtype`, `compile` and budgets.
        began: where the resumed run stands; None for a new one.
        finished: whether no step is left to make, so that nothing is compiled.
        flops_per_token: forward and backward; 0 when unknown.
        on_progress: told what and why.
    """
    device = next(model.parameters()).device
    dtype, reason = _choose_dtype(plan, device, began)
    on_progress({"note": f"computing in {reason}"})
    rate = on_first(lambda: _flops_per_s(dtype, device)) if flops_per_token else 0.0
    rate *= world_size()
    loss_sum: LossSum = model.loss_sum
    if not finished and plan.compile != "off":
        batch = _peek(batches).to(device)
        if _wants_compilation(plan, batch, began, flops_per_token, rate):
            loss_sum = _compile(model, optimizer, batch, dtype, on_progress)
    return Computing(
        dtype=dtype,
        loss_sum=loss_sum,
        compiled=loss_sum != model.loss_sum,
        flops_per_s=rate,
    )


def _choose_dtype(
    plan: TrainingPlan, device: torch.device, began: Position | None
) -> tuple[str, str]:
    """The name of the dtype and a reason that begins with it."""
    if plan.dtype != "auto":
        return plan.dtype, f"{plan.dtype}, as asked"
    if began is not None:
        return began.dtype, f"{began.dtype}, as the run began"
    picked, reason = on_first(lambda: pick_dtype(device))
    return str(picked).removeprefix("torch."), reason


def _flops_per_s(dtype: str, device: torch.device) -> float:
    size = 4096 if device.type == "cuda" else 512
    return gemm_flops_per_s(getattr(torch, dtype), device, size=size)


def _wants_compilation(
    plan: TrainingPlan,
    batch: Batch,
    began: Position | None,
    flops_per_token: float,
    flops_per_s: float,
) -> bool:
    if plan.compile == "on":
        return True
    if began is not None:
        return began.compiled
    return worth_compiling(
        plan,
        tokens_per_step=batch.input_ids.numel() * plan.accumulation * world_size(),
        flops_per_token=flops_per_token,
        flops_per_s=flops_per_s,
    )


def _compile(
    model: LanguageModel,
    optimizer: optim.Optimizer,
    batch: Batch,
    dtype: str,
    on_progress: OnProgress,
) -> LossSum:
    device = batch.input_ids.device
    if missing := on_first(lambda: missing_compiler(device)):
        on_progress({"note": f"torch.compile is off: {missing} is not installed"})
        return model.loss_sum

    def try_out(loss_sum: LossSum) -> None:
        with autocast(device, dtype):
            total, _ = loss_sum(*batch.arguments)
        total.backward()
        optimizer.zero_grad()

    on_progress({"note": "compiling the model"})
    with unchanged_generators(device):
        loss_sum, note = compiled(model, try_out)
    on_progress({"note": note})
    return loss_sum


def unchanged_generators(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Put the random generators back at the end of a block."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def _peek(batches: BatchSource) -> Batch:
    """The next batch, left where it is."""
    place = batches.state_dict()
    batch = batches.next()
    batches.load_state_dict(place)
    return batch
