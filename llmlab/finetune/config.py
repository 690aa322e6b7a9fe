"""The settings of `llmlab finetune` and `llmlab merge`. Torch-free."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmlab.errors import ConfigError
from llmlab.training.plan import TrainingPlan


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """A low-rank adapter."""

    rank: int = 16
    """Inner size of the update; its parameters a layer are rank x (in + out)."""

    alpha: float = 16.0
    """Numerator of the scaling."""

    dropout: float = 0.0
    """Share of a layer's inputs that the update does not see in training."""

    rslora: bool = True
    """Scale by alpha / sqrt(rank), which keeps larger ranks useful, instead of alpha / rank."""

    target_modules: tuple[str, ...] | None = None
    """Names of layers, such as q_proj v_proj; every linear layer of the decoder when unset."""

    def __post_init__(self) -> None:
        """Refuse values no adapter can have.

        Raises:
            ConfigError: a number out of its range.
        """
        if self.rank < 1:
            raise ConfigError(f"rank={self.rank} is below 1; try 16")
        if not 0 < self.alpha < math.inf:
            raise ConfigError(f"alpha={self.alpha} must be greater than 0; try 16")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout} must be in [0, 1); try 0")
        if self.target_modules is not None and not self.target_modules:
            raise ConfigError("target_modules is empty; name layers, or leave it unset for all")

    @property
    def scaling(self) -> float:
        """What the product B A is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Adapt a model to chats or prompt/completion pairs."""

    model: Path
    """Model folder to start from."""

    data: Path
    """JSON lines (.jsonl or .jsonl.gz): each has `messages`, or `prompt` and `completion`."""

    out: Path
    """Folder of the run; the adapter is `out/adapter` (lora), the model `out/model` (full)."""

    overwrite: bool = False
    """Start anew in an `out` that holds something."""

    resume: bool = False
    """Go on from the newest checkpoint in `out`."""

    method: Literal["lora", "full"] = "lora"
    """Train a low-rank adapter, or every weight."""

    rank: int = 16
    """LoRA: inner size of the update."""

    alpha: float = 16.0
    """LoRA: numerator of the scaling."""

    dropout: float = 0.0
    """LoRA: share of a layer's inputs that the update does not see in training."""

    rslora: bool = True
    """LoRA: scale by alpha / sqrt(rank) instead of alpha / rank."""

    target_modules: tuple[str, ...] | None = None
    """LoRA: names of layers, such as q_proj v_proj; every linear layer when unset."""

    num_epochs: float = 3.0
    """Passes over the examples."""

    max_steps: int | None = None
    """End earlier, after this many optimizer steps."""

    max_seconds: float | None = None
    """End earlier, after this many seconds."""

    batch_size: int = 8
    """Examples a micro-batch."""

    accumulation: int = 1
    """Micro-batches an optimizer step."""

    max_len: int | None = None
    """Longest example in tokens, longer ones are left out; the model's context when unset."""

    learning_rate: float | None = None
    """Peak of AdamW's learning rate; unset means 3e-4 for lora, 3e-5 for full."""

    warmup_steps: int = 10
    """Optimizer steps over which the learning rate rises."""

    weight_decay: float = 0.0
    """AdamW's decoupled decay, on weight matrices only."""

    grad_clip: float = 1.0
    """Largest L2 norm of the gradient; 0 turns clipping off."""

    val_fraction: float = 0.05
    """Share of the examples held out to measure the loss on, 0 to 0.5."""

    eval_every: int = 0
    """Steps between measurements on the held-out examples; 0 measures at the end only."""

    checkpoint_every: int = 0
    """Steps between checkpoints; 0 writes one at the end, or at an interrupt, only."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute dtype; the weights stay float32."""

    seed: int = 0
    """Seed of the adapter's start, the order of the examples, and dropout."""

    def __post_init__(self) -> None:
        """Refuse values that no run can use.

        Raises:
            ConfigError: names the field, its value and a value that works.
        """
        for name in ("num_epochs", "batch_size", "accumulation", "max_len"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name}={value} must be greater than 0; try 1")
        if not 0 <= self.val_fraction <= 0.5:
            raise ConfigError(f"val_fraction={self.val_fraction} is not in [0, 0.5]; try 0.05")
        if self.resume and self.overwrite:
            raise ConfigError(
                "resume=True goes on with the run in out, overwrite=True deletes it; choose one"
            )
        _ = self.lora, self.plan(num_batches=1)

    def plan(self, num_batches: int) -> TrainingPlan:
        """Return the plan of the training loop for data of so many micro-batches an epoch.

        Raises:
            ConfigError: a number out of its range.
        """
        steps = math.ceil(self.num_epochs * num_batches / self.accumulation)
        rates = {"lora": 3e-4, "full": 3e-5}
        return TrainingPlan(
            max_steps=steps if self.max_steps is None else min(steps, self.max_steps),
            max_seconds=self.max_seconds,
            learning_rate=self.learning_rate or rates[self.method],
            warmup_steps=self.warmup_steps,
            weight_decay=self.weight_decay,
            grad_clip=self.grad_clip,
            accumulation=self.accumulation,
            eval_every=self.eval_every,
            checkpoint_every=self.checkpoint_every,
            seed=self.seed,
            compile="off",  # batches are padded to their own longest example
            dtype=self.dtype,
        )

    @property
    def lora(self) -> LoraConfig:
        """The adapter's own settings."""
        return LoraConfig(
            rank=self.rank,
            alpha=self.alpha,
            dropout=self.dropout,
            rslora=self.rslora,
            target_modules=self.target_modules,
        )


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Fold an adapter into its base model."""

    adapter: Path
    """Adapter folder, or the folder of the finetuning run that holds it."""

    out: Path
    """Model folder to write."""

    model: Path | None = None
    """Base model folder; the one that the adapter names when unset."""

    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the weights written; that of the base model when unset."""

    overwrite: bool = False
    """Replace `out` when it already exists."""
