"""A moving average of the weights: smoother than the weights of any one step, and often better.

After each optimizer step, average <- d average + (1 - d) weights, where d is `ema_decay` but never
more than (1 + n) / (10 + n) after n steps, so that the start is soon forgotten. The average stands
in the optimizer's state beside the moments: checkpoints keep it, sharded and resumed like them.

Not here: when it is used (loop.py: evaluations, samples, and the finished model). Averaging of
iterates: Polyak and Juditsky, 1992, doi:10.1137/0330046.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, optim

_KEY = "average"
_STEPS = "averaged_steps"


def keep_average(optimizer: optim.Optimizer, decay: float) -> None:
    """Average the weights of `optimizer` after each of its steps from now on.

    Args:
        optimizer: its state gets an `average` for each parameter it moves, its groups a count.
        decay: share of the average that a step leaves, in (0, 1).
    """

    def update(optimizer: optim.Optimizer, *_: object) -> None:
        for group in optimizer.param_groups:
            moved = [p for p in group["params"] if optimizer.state[p]]
            if not moved:
                continue
            for p in moved:
                optimizer.state[p].setdefault(_KEY, p.detach().clone())
            steps = group[_STEPS] = group.get(_STEPS, 0) + 1
            averages = [optimizer.state[p][_KEY] for p in moved]
            share = min(decay, (1 + steps) / (10 + steps))
            torch._foreach_lerp_(averages, [p.detach() for p in moved], 1 - share)

    optimizer.register_step_post_hook(update)


@contextmanager
def averaged(optimizer: optim.Optimizer) -> Iterator[None]:
    """Put the average in place of the weights, and both back to the bit afterwards.

    Before the first step, when there is no average, nothing changes.
    """
    _exchange(optimizer)
    try:
        yield
    finally:
        _exchange(optimizer)


def use_average(optimizer: optim.Optimizer) -> None:
    """Make the average the weights, for good."""
    with torch.no_grad():
        for p, average in _averages(optimizer):
            p.copy_(average)


def _exchange(optimizer: optim.Optimizer) -> None:
    with torch.no_grad():
        for p, average in _averages(optimizer):
            weights = p.clone()
            p.copy_(average)
            average.copy_(weights)


def _averages(optimizer: optim.Optimizer) -> list[tuple[Tensor, Tensor]]:
    return [(p, state[_KEY]) for p, state in optimizer.state.items() if _KEY in state]
