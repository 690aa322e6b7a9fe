"""Lion: the sign of a momentum as the update; one moment a weight where AdamW keeps two.

Every weight moves by exactly the learning rate, which is therefore several times smaller than
AdamW's, with a decay that much larger. Source: arXiv:2302.06675, algorithm 2.
"""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import optim


class Lion(optim.Optimizer):
    """Evolved sign momentum with decoupled weight decay.

    Args:
        groups: parameters, or parameter groups.
        lr: learning rate.
        betas: share of the momentum in the update, and the momentum's decay rate.
        weight_decay: decoupled decay, a fraction of the weight a step at a learning rate of 1.
    """

    def __init__(
        self,
        groups: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move every parameter that has a gradient.

        Args:
            closure: computes the loss anew and returns it, as for any torch optimizer.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            gradients = [p.grad for p in parameters]
            for p in parameters:
                if not self.state[p]:
                    self.state[p]["exp_avg"] = torch.zeros_like(p)
            moments = [self.state[p]["exp_avg"] for p in parameters]
            share, decay = group["betas"]
            updates = torch._foreach_lerp(moments, gradients, 1 - share)
            torch._foreach_sign_(updates)
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, updates, alpha=-group["lr"])
            torch._foreach_lerp_(moments, gradients, 1 - decay)
        return loss
