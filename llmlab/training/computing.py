"""How a run computes: in which dtype, compiled or not, and how fast the machine could go.

`auto` decides by measuring, once in a run: a resumed one stays with what it began with, or its
curve would bend. Rank 0 measures and decides for all.

Not here: compilation itself (compilation.py), the loop (loop.py).
"""

import torch
from torch import optim

from llmlab.data.batch import Batch
from llmlab.hardware import gemm_flops_per_s, pick_dtype
from llmlab.model.language_model import LanguageModel
from llmlab.track import OnProgress
from llmlab.training.compilation import LossSum, compiled, missing_compiler, worth_compiling
from llmlab.training.distributed import on_first, world_size
from llmlab.training.plan import TrainingPlan
from llmlab.training.step import autocast


def choose_dtype(
    plan: TrainingPlan, device: torch.device, began_with: str | None, on_progress: OnProgress
) -> str:
    """Return the name of the compute dtype: the plan's, or for `auto` the faster one.

    Args:
        plan: its `dtype`.
        device: where the model is.
        began_with: what the resumed run computes in; None for a new one.
        on_progress: told what and why.
    """
    name, reason = plan.dtype, f"{plan.dtype}, as asked"
    if name == "auto" and began_with is not None:
        name, reason = began_with, f"{began_with}, as the run began"
    elif name == "auto":
        picked, reason = on_first(lambda: pick_dtype(device))
        name = str(picked).removeprefix("torch.")
    on_progress({"note": f"computing in {reason}"})
    return name


def peak_flops_per_s(dtype: str, device: torch.device) -> float:
    """Measure what all ranks together reach on a large matrix product."""
    size = 4096 if device.type == "cuda" else 512
    rate = on_first(lambda: gemm_flops_per_s(getattr(torch, dtype), device, size=size))
    return rate * world_size()


def choose_loss_sum(
    model: LanguageModel,
    optimizer: optim.Optimizer,
    batch: Batch,
    plan: TrainingPlan,
    *,
    dtype: str,
    began_compiled: bool | None,
    flops_per_token: float,
    flops_per_s: float,
    on_progress: OnProgress,
) -> LossSum:
    """Return `model.loss_sum`, compiled if asked to or if that repays itself.

    Args:
        model: what is trained.
        optimizer: its gradients are cleared after the compiled model was tried out.
        batch: one like those to come, on the model's device.
        plan: its `compile` and its budgets.
        dtype: compute dtype.
        began_compiled: whether the resumed run is compiled; None for a new one.
        flops_per_token: forward and backward; 0 when unknown.
        flops_per_s: what all ranks reach on a large matrix product.
        on_progress: told what and why.
    """
    wanted = plan.compile == "on" or (plan.compile == "auto" and began_compiled is True)
    if plan.compile == "auto" and began_compiled is None:
        wanted = worth_compiling(
            plan,
            tokens_per_step=batch.input_ids.numel() * plan.accumulation * world_size(),
            flops_per_token=flops_per_token,
            flops_per_s=flops_per_s,
        )
    if not wanted:
        return model.loss_sum
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
    loss_sum, note = compiled(model, try_out)
    on_progress({"note": note})
    return loss_sum
