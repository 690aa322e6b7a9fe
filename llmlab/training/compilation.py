"""torch.compile for the loss: whether it is worth it, and a way back when it cannot work.

Not here: the model's code, which must trace as one graph. Measured on two AVX512-BF16 cores,
compilation costs about 25 s and makes a bfloat16 step of a 6M model 1.5 times faster.
"""

import os
import shutil
import time
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

from llmlab.training.plan import TrainingPlan

LossSum = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""`(input_ids, labels) -> (sum of the losses, number of labels scored)`."""

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


def compiled(loss_sum: LossSum, try_out: Callable[[LossSum], None]) -> tuple[LossSum, str]:
    """Compile `loss_sum` as one graph of fixed shapes and try it.

    Args:
        loss_sum: what to compile.
        try_out: runs its argument forward and backward once, without lasting effect.

    Returns:
        The compiled function and a sentence about it; when the compiler fails, `loss_sum` itself
        and the reason.
    """
    fast = torch.compile(loss_sum, fullgraph=True, dynamic=False)
    start = time.monotonic()
    try:
        try_out(fast)
    except RuntimeError as error:  # every failure of dynamo or inductor is one
        reason = " ".join(str(error).split("\n")[:2])
        return loss_sum, f"torch.compile failed ({reason}); going on without it"
    return fast, f"torch.compile is on; compiled in {time.monotonic() - start:.0f} s"
