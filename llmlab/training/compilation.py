"""torch.compile for training: whether it is worth it, and a way back when it cannot work.

The layers of a model share their code, so one layer is compiled and all use it; the head with its
loss is the second graph. Measured with bfloat16 on two cores with AMX: 24 s to compile, then steps
are 1.6 times faster. The whole model as one graph, with a wrapper in C++, takes 10 s more for four
layers and its steps come out another 9 % faster: not worth its time, which grows with depth.

Not here: the model's code, whose layers must each trace as one graph.
"""

import os
import shutil
import time
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from llmlab.model.language_model import LanguageModel
from llmlab.training.plan import TrainingPlan

LossSum = Callable[..., tuple[Tensor, Tensor]]
"""`(*batch.arguments) -> (sum of the losses, number of labels scored)`."""

WORTH_IT_S = 120.0
"""Expected seconds from which `compile="auto"` compiles."""

_EAGER_MFU = 0.3


def worth_compiling(
    plan: TrainingPlan, *, tokens_per_step: int, flops_per_token: float, flops_per_s: float
) -> bool:
    """Tell whether the plan will take longer than `WORTH_IT_S` without compilation.

    Args:
        plan: its budgets.
        tokens_per_step: tokens in one optimizer step.
        flops_per_token: forward and backward; 0 when unknown, which counts as a short run.
        flops_per_s: what the machine reaches on a large matrix product.
    """
    tokens = [plan.max_tokens] if plan.max_tokens is not None else []
    tokens += [plan.max_steps * tokens_per_step] if plan.max_steps is not None else []
    seconds = [plan.max_seconds] if plan.max_seconds is not None else []
    if tokens:
        needed = min(tokens) * flops_per_token
        seconds.append(needed / (flops_per_s * _EAGER_MFU) if needed else 0.0)
    return min(seconds) > WORTH_IT_S


def missing_compiler(device: torch.device) -> str | None:
    """Say which compiler torch.compile lacks for `device`, or None."""
    if device.type == "cuda":
        return None if find_spec("triton") else "Triton"
    compilers = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"]
    return None if any(map(shutil.which, compilers)) else f"a C++ compiler ({compilers[0]})"


def with_compiled_layers(model: LanguageModel) -> LossSum:
    """Return `model.loss_sum` with compiled layers and head; the model itself is left as it is.

    Other callers keep the plain layers, so that evaluations and samples of any shape go on without
    compiling anew.
    """
    plain = layers(model)
    forwards = [torch.compile(layer.forward, fullgraph=True, dynamic=False) for layer in plain]
    head_loss_sum = torch.compile(model.head_loss_sum, fullgraph=True, dynamic=False)

    def loss_sum(*arguments: Tensor) -> tuple[Tensor, Tensor]:
        for layer, forward in zip(plain, forwards, strict=True):
            layer.forward = forward
        model.head_loss_sum = head_loss_sum
        try:
            return model.loss_sum(*arguments)
        finally:
            del model.head_loss_sum
            for layer in plain:
                del layer.forward

    return loss_sum


def layers(module: nn.Module) -> list[nn.Module]:
    """Return the layers of a model: what its outermost lists hold."""
    if isinstance(module, nn.ModuleList):
        return list(module)
    return [layer for child in module.children() for layer in layers(child)]


def compiled(model: LanguageModel, try_out: Callable[[LossSum], None]) -> tuple[LossSum, str]:
    """Compile the layers of `model` for one shape of batch, and try them.

    Args:
        model: what to compile.
        try_out: runs its argument forward and backward once, without lasting effect.

    Returns:
        The faster `loss_sum` and a sentence about it; when the compiler fails, the model's own and
        the reason.
    """
    fast = with_compiled_layers(model)
    start = time.monotonic()
    try:
        try_out(fast)
    except RuntimeError as error:  # every failure of dynamo or inductor is one
        reason = " ".join(str(error).split("\n")[:2])
        return model.loss_sum, f"torch.compile failed ({reason}); going on without it"
    return fast, f"torch.compile is on; compiled in {time.monotonic() - start:.0f} s"
