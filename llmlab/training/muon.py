"""Muon: momentum, orthogonalised, for the hidden matrices, and AdamW for everything else.

A hidden matrix moves along the orthogonalised Nesterov momentum of its gradient
(https://kellerjordan.github.io/posts/muon), with decoupled weight decay. The update is scaled by
0.2 sqrt(max(rows, columns)): its root mean square is then 0.2 whatever the shape, as AdamW's is in
practice, so that both rules share one learning rate and one decay (arXiv:2502.16982, section 2.2).

Not here: which parameter goes by which rule (optimizer.py), orthogonalisation (orthogonal.py).
"""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, optim
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.adamw import adamw

from llmlab.training.orthogonal import orthogonalize

UPDATE_RMS = 0.2
"""Root mean square of an update at a learning rate of 1."""


class Muon(optim.Optimizer):
    """Muon and AdamW as one optimizer, with one state to save.

    Each parameter group says by `rule` how its parameters move: "muon" (matrices, or stacks of
    matrices of shape (experts, rows, columns)) or "adamw". The products of the orthogonalisation
    run in the dtype of the autocast around `step`, otherwise in float32.

    Sharded parameters (DTensor) keep sharded moments; only the orthogonalisation sees whole
    matrices, which every rank gathers and works on alike.

    Args:
        groups: parameter groups with `params`, `rule`, and what shall differ from the rest.
        lr: learning rate.
        momentum: of the hidden matrices.
        betas: AdamW's decay rates of the first and second moment.
        eps: AdamW's epsilon.
        weight_decay: decoupled decay, a fraction of the weight a step at a learning rate of 1.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "rule": "adamw",
        }
        super().__init__(groups, defaults)

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
            if parameters and group["rule"] == "muon":
                self._move_matrices(parameters, group)
            elif parameters:
                self._move_by_adamw(parameters, group)
        return loss

    def _move_matrices(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        for p in parameters:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in parameters]
        momentum = group["momentum"]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        directions = torch._foreach_lerp(gradients, buffers, momentum)  # Nesterov's look ahead
        dtype = _autocast_dtype(parameters[0].device)
        updates = orthogonalize([_whole(d) for d in directions], dtype=dtype)
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        for p, update in zip(parameters, updates, strict=True):
            size = UPDATE_RMS * max(p.shape[-2:]) ** 0.5
            p.add_(_sharded_like(p, update.to(p.dtype)), alpha=-group["lr"] * size)

    def _move_by_adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p] = {
                    "step": torch.zeros((), dtype=torch.float32, device=p.device),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
        states = [self.state[p] for p in parameters]
        adamw(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _autocast_dtype(device: torch.device) -> torch.dtype:
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return torch.float32


def _whole(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor; every rank gets all of it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _sharded_like(parameter: Tensor, whole: Tensor) -> Tensor:
    """Cut `whole`, which every rank holds, the way `parameter` is cut; nothing is sent."""
    if not isinstance(parameter, DTensor):
        return whole
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
