"""The learning rate of a step: linear warm-up times one decay over the budget. Torch-free.

The budget may be steps, tokens or seconds, and the decay follows whichever is used up furthest, so
a run of `max_seconds=180` also ends at its minimum. Over the used fraction u of the budget:

    cosine    1/2 (1 + cos(pi u))                                              arXiv:1608.03983
    linear    1 - u                                                            arXiv:2310.07831
    wsd       1, and over the last `decay_fraction` of the budget 1 - x or     arXiv:2404.06395
              1 - sqrt(x), where x is the used fraction of that part           arXiv:2405.18392

Up to the start of its decay, a wsd run does not depend on the budget: resumed from a checkpoint
before it with a larger one, it goes on as if that had been meant from the start.
"""

import math

from llmlab.training.plan import TrainingPlan


def progress(plan: TrainingPlan, *, steps: float, tokens: float, seconds: float) -> float:
    """Return the used fraction of the budget, in [0, 1].

    Args:
        plan: its three budgets; an unset one does not count.
        steps: optimizer steps made.
        tokens: tokens put through the model.
        seconds: wall time used.
    """
    used = [
        spent / budget
        for spent, budget in (
            (steps, plan.max_steps),
            (tokens, plan.max_tokens),
            (seconds, plan.max_seconds),
        )
        if budget is not None
    ]
    return min(1.0, max(used))


def learning_rate(plan: TrainingPlan, *, step: int, progress: float) -> float:
    """Return the learning rate of one step.

    Args:
        plan: peak, shape, floor and warm-up.
        step: the step to be made, counted from 1.
        progress: used fraction of the budget when that step is done; 1 for the last step, which
            therefore runs at `learning_rate * min_lr_fraction`.
    """
    rise = min(1.0, step / plan.warmup_steps) if plan.warmup_steps else 1.0
    fall = plan.min_lr_fraction + (1 - plan.min_lr_fraction) * _decay(plan, progress)
    return plan.learning_rate * rise * fall


def _decay(plan: TrainingPlan, progress: float) -> float:
    """From 1 down to 0 over the budget."""
    if plan.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    if plan.schedule == "linear":
        return 1.0 - progress
    if progress <= 1.0 - plan.decay_fraction:
        return 1.0
    x = max(0.0, 1.0 - (1.0 - progress) / plan.decay_fraction)
    return 1.0 - (math.sqrt(x) if plan.decay_shape == "sqrt" else x)
