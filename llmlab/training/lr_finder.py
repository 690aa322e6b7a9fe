"""The learning-rate finder: one short run whose rate rises from far too small to far too large.

The loss first stands still, then falls, then stays where it is or leaps (the range test of
arXiv:1506.01186). The rate to train with lies near the end of the fall: half of the rate at which
nine tenths of it were done.

Not here: models, data, pictures (llmlab/pretrain). The model that was used is of no further use.
"""

import math
from dataclasses import dataclass

import torch

from llmlab.errors import ModelError
from llmlab.hardware import pick_dtype
from llmlab.model.language_model import LanguageModel
from llmlab.track import OnProgress, silent
from llmlab.training.hooks import BatchSource
from llmlab.training.optimizer import build_optimizer, trainable_parameters
from llmlab.training.plan import TrainingPlan
from llmlab.training.step import add_gradient, autocast, clip_gradient

LOWEST, HIGHEST = 1e-5, 1.0
"""Ends of the ramp."""

SHARE = 0.5
"""The suggested rate is this share of the one at the end of the fall."""

_LEAST = 0.01  # share of the first loss by which it must fall for the ramp to say anything
_DONE = 0.9  # share of the fall that counts as its end: the last tenth is flat, and noise
_MEMORY = 0.9  # of the moving average that smooths the losses
_LEAP = 0.3  # the ramp ends when the loss has risen by this share of what it had fallen


@dataclass(frozen=True, kw_only=True)
class RateRamp:
    """What a ramp found."""

    suggested: float
    """Learning rate to train with."""

    rates: tuple[float, ...]
    """Learning rate of each step."""

    losses: tuple[float, ...]
    """Loss of each step before its update, nats a token."""

    smoothed: tuple[float, ...]
    """Their moving average."""


def find_learning_rate(
    model: LanguageModel,
    batches: BatchSource,
    plan: TrainingPlan,
    *,
    num_steps: int = 100,
    on_progress: OnProgress = silent,
) -> RateRamp:
    """Train for `num_steps` steps while the rate rises exponentially, or until the loss leaps.

    Args:
        model: a fresh one; it is spoilt.
        batches: the batch source.
        plan: optimizer, clipping, accumulation and dtype; its rate and budgets are not used.
        num_steps: steps from `LOWEST` to `HIGHEST`.
        on_progress: gets the numbers of each step.

    Raises:
        ModelError: the loss never fell.
    """
    torch.manual_seed(plan.seed)
    device = next(model.parameters()).device
    dtype = plan.dtype
    if dtype == "auto":
        dtype = str(pick_dtype(device)[0]).removeprefix("torch.")
    optimizer = build_optimizer(model, plan)
    model.train()
    rates: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    for step in range(num_steps):
        micro_batches = [batches.next() for _ in range(plan.accumulation)]
        loss = add_gradient(model.loss_sum, micro_batches, device=device, dtype=dtype)
        rate = LOWEST * (HIGHEST / LOWEST) ** (step / max(1, num_steps - 1))
        if not math.isfinite(loss):
            break
        rates.append(rate)
        losses.append(loss)
        smoothed.append(_average(losses))
        on_progress({"step": f"{step + 1}/{num_steps}", "lr": rate, "loss": loss})
        if _has_leapt(smoothed):
            break
        try:
            clip_gradient(trainable_parameters(model), loss, plan.grad_clip)
        except ModelError:  # the gradient is not finite: the ramp has gone as far as it can
            break
        for group in optimizer.param_groups:
            group["lr"] = rate
        with autocast(device, dtype):
            optimizer.step()
        optimizer.zero_grad()
    return _finding(rates, losses, smoothed)


def _average(losses: list[float]) -> float:
    """The moving average at the newest loss, corrected for its start."""
    shares = [_MEMORY**age for age in range(len(losses))]
    return sum(s * x for s, x in zip(shares, reversed(losses), strict=True)) / sum(shares)


def _has_leapt(smoothed: list[float]) -> bool:
    lowest = min(smoothed)
    fallen = smoothed[0] - lowest
    return fallen > 0.1 and smoothed[-1] - lowest > _LEAP * fallen


def _finding(rates: list[float], losses: list[float], smoothed: list[float]) -> RateRamp:
    if not losses or min(smoothed) > (1 - _LEAST) * smoothed[0]:
        raise ModelError(
            f"the loss did not fall in {len(losses)} steps, at rates from {LOWEST:g} to "
            f"{rates[-1] if rates else LOWEST:g}; check the data, or take more tokens a step"
        )
    end = smoothed[0] - _DONE * (smoothed[0] - min(smoothed))
    fell = next(rate for rate, loss in zip(rates, smoothed, strict=True) if loss <= end)
    return RateRamp(
        suggested=_two_digits(SHARE * fell),
        rates=tuple(rates),
        losses=tuple(losses),
        smoothed=tuple(smoothed),
    )


def _two_digits(value: float) -> float:
    return float(f"{value:.1e}")
