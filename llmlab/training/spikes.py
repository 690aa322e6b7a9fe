"""Spikes: a loss or gradient norm far above what the last steps had.

A value is a spike when it lies more than `SIGMAS` standard deviations above the mean of the last
`WINDOW` steps (the rule of OLMo, arXiv:2501.00656, section 3.2). A spike enters the window as the
limit it broke, so that one outlier does not blind the guard, and a lasting rise still moves it.

Not here: what is done about a spike (loop.py). Pure Python, and a function of the numbers seen: a
resumed run, and every rank of a distributed one, decides alike.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Self

WINDOW = 128
"""Steps looked back on."""

SIGMAS = 6.0
"""Standard deviations above the mean that are still normal."""

WARM_UP = 32
"""Steps before the first that can be a spike: fewer say little about the spread."""


@dataclass
class SpikeGuard:
    """The last losses and gradient norms, and how many spikes there were."""

    losses: list[float] = field(default_factory=list)
    """Nats a token, newest last."""

    grad_norms: list[float] = field(default_factory=list)
    """L2 norms before clipping, newest last."""

    spikes: int = 0
    """Spikes so far."""

    def check(self, loss: float, grad_norm: float) -> str | None:
        """Take in the numbers of a step; say what is wrong with them, or None.

        Args:
            loss: of the step at hand, nats a token.
            grad_norm: L2 norm of its gradient before clipping.
        """
        faults = [
            f"{name} {value:.4g} is above {limit:.4g}, mean + {SIGMAS:g} standard deviations of "
            f"the last {len(last)} steps"
            for name, value, last in (
                ("loss", loss, self.losses),
                ("gradient norm", grad_norm, self.grad_norms),
            )
            if value > (limit := _limit(last))
        ]
        _enter(self.losses, loss)
        _enter(self.grad_norms, grad_norm)
        self.spikes += bool(faults)
        return " and ".join(faults) or None

    def state_dict(self) -> dict[str, Any]:
        """Return everything as numbers and lists, for a checkpoint."""
        return {"losses": self.losses, "grad_norms": self.grad_norms, "spikes": self.spikes}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Return the guard that `state_dict` described; a new one for an empty dict."""
        return cls(**state)


def _limit(last: list[float]) -> float:
    if len(last) < WARM_UP:
        return math.inf
    mean = math.fsum(last) / len(last)
    variance = math.fsum((value - mean) ** 2 for value in last) / len(last)
    return mean + SIGMAS * math.sqrt(variance)


def _enter(last: list[float], value: float) -> None:
    last.append(min(value, _limit(last)))
    del last[:-WINDOW]
