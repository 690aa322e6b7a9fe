"""The plan of a training run: budgets, optimizer settings, cadence. Torch-free.

Not here: what is trained and on which data (the stage's own config), the learning rate of a given
step (schedule.py). The plan is stored in every checkpoint.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from llmlab.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """How long to train, with which optimizer, and what to do on the way.

    At least one of the three budgets must be set; the run ends with the first one that is used up.
    """

    max_steps: int | None = None
    """Budget in optimizer steps."""

    max_seconds: float | None = None
    """Budget in seconds of wall time inside `train`: compilation, evaluations and samples count,
    and so does the time before a resume."""

    max_tokens: int | None = None
    """Budget in tokens put through the model, scored or not."""

    optimizer: Literal["adamw", "muon", "lion"] = "adamw"
    """The rule of the update; muon moves the hidden matrices, and AdamW the rest."""

    learning_rate: float = 1e-3
    """Peak learning rate; adamw and muon share one scale, lion wants several times less."""

    schedule: Literal["cosine", "wsd", "linear"] = "cosine"
    """After the warm-up: one half cosine, constant with a decay at the end (wsd), or a line."""

    decay_fraction: float = 0.2
    """wsd: share of the budget, at its end, over which the rate decays."""

    decay_shape: Literal["linear", "sqrt"] = "sqrt"
    """wsd: the decay falls linearly, or as 1 - sqrt(x), steep at first."""

    min_lr_fraction: float = 0.1
    """The schedule ends at this fraction of the peak."""

    warmup_steps: int = 50
    """Steps over which the learning rate rises linearly to its schedule."""

    weight_decay: float = 0.1
    """Decoupled decay, on weight matrices only."""

    betas: tuple[float, float] | None = None
    """Decay rates of the two moments; unset means (0.9, 0.95), and (0.9, 0.99) for lion."""

    momentum: float = 0.95
    """muon: momentum of the hidden matrices."""

    adam_eps: float = 1e-8
    """AdamW's epsilon."""

    grad_clip: float = 1.0
    """Largest L2 norm of the whole gradient; 0 turns clipping off."""

    skip_spikes: bool = False
    """Leave out the update of a step whose loss or gradient norm is far above the last ones."""

    ema_decay: float = 0.0
    """Keep an average of the weights that forgets this slowly, for evaluations and as the result,
    for example 0.999; 0 keeps none."""

    accumulation: int = 1
    """Micro-batches a step; the gradient is that of one batch with all their scored tokens."""

    eval_every: int = 0
    """Steps between calls of `Hooks.evaluate`; 0 calls it at the end only."""

    sample_every: int = 0
    """Steps between calls of `Hooks.sample`; 0 calls it at the end only."""

    checkpoint_every: int = 0
    """Steps between checkpoints; 0 writes one at the end (or at an interrupt) only."""

    keep_checkpoints: int = 2
    """Newest checkpoints to keep."""

    log_every: int = 1
    """Steps between rows of metrics.jsonl."""

    seed: int = 0
    """Seed of torch's generator (dropout) at step 0."""

    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile: auto turns it on when the run is expected to take over two minutes and a
    compiler is there. Batches must then keep one shape."""

    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: each process holds the whole model, or a share of it (FSDP2)."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute dtype; bfloat16 is autocast over float32 weights. auto times one matrix product."""

    def __post_init__(self) -> None:
        """Refuse values that no run can use.

        Raises:
            ConfigError: no budget, or a number out of its range.
        """
        if self.max_steps is None and self.max_seconds is None and self.max_tokens is None:
            raise ConfigError(
                "no budget: max_steps, max_seconds and max_tokens are all unset; "
                "set at least one, for example --max-seconds 180"
            )
        for name in ("max_steps", "max_seconds", "max_tokens", "learning_rate", "accumulation",
                     "keep_checkpoints", "log_every", "adam_eps"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name}={value} must be greater than 0; try {_try(name)}")
        for name in ("warmup_steps", "weight_decay", "grad_clip", "eval_every", "sample_every",
                     "checkpoint_every"):  # fmt: skip
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ConfigError(f"{name}={value} must be 0 or more; 0 turns it off")
        for name, value, good in (
            ("beta1", self.optimizer_betas[0], "betas=(0.9, 0.95)"),
            ("beta2", self.optimizer_betas[1], "betas=(0.9, 0.95)"),
            ("momentum", self.momentum, "0.95"),
            ("ema_decay", self.ema_decay, "0.999"),
        ):
            if not 0 <= value < 1:
                raise ConfigError(f"{name}={value} must be in [0, 1); try {good}")
        for name, good in (("min_lr_fraction", 0.1), ("decay_fraction", 0.2)):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be in [0, 1]; try {good}")

    @property
    def optimizer_betas(self) -> tuple[float, float]:
        """Decay rates of the two moments, as set or as the optimizer's paper has them."""
        return self.betas or ((0.9, 0.99) if self.optimizer == "lion" else (0.9, 0.95))

    def differences(self, other: dict[str, Any]) -> list[str]:
        """Name the fields whose values are not those of `other`, as `field 1 -> 2`."""
        return [
            f"{name} {other[name]} -> {value}"
            for name, value in vars(self).items()
            if name in other and _plain(other[name]) != _plain(value)
        ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _try(name: str) -> str:
    return {"learning_rate": "1e-3", "adam_eps": "1e-8", "max_seconds": "180"}.get(name, "1")
