"""The learning rate of a step: linear warm-up times one cosine over the budget. Torch-free.

The budget may be steps, tokens or seconds, and the cosine follows whichever is used up furthest, so
a run of `max_seconds=180` also ends at its minimum. Cosine decay: arXiv 1608.03983.
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
        plan: peak, floor and warm-up.
        step: the step to be made, counted from 1.
        progress: used fraction of the budget when that step is done; 1 for the last step, which
            therefore runs at `learning_rate * min_lr_fraction`.
    """
    rise = min(1.0, step / plan.warmup_steps) if plan.warmup_steps else 1.0
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return plan.learning_rate * rise * (plan.min_lr_fraction + (1 - plan.min_lr_fraction) * cosine)
