"""The settings of `llmlab pretrain`. Torch-free.

The defaults are those of a three-minute run on two CPU cores, taken from runs of the quickstart
preset on the Python standard library, one seed each. Held-out loss in nats a token:

    tokens      batch_tokens  warmup_steps  learning_rate: loss
    300,000     2048          20            5e-4: 6.22   1e-3: 6.04   3e-3: 6.72
    300,000     2048          50            1e-3: 6.01   2e-3: 5.92
    300,000     4096          20            1e-3: 6.34
    1,000,000   2048          50            2e-3: 4.99
    1,000,000   1024          100           2e-3: 4.97

For runs of hours take a larger batch and a smaller rate.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmlab.data.config import Packing
from llmlab.errors import ConfigError
from llmlab.training.plan import TrainingPlan


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Train a model from scratch on shards; set at least one of the three budgets."""

    data: tuple[str, ...]
    """Shards folders, from `llmlab data pack`; or sources of text, as that verb takes them, which
    are tokenized into `out/shards` (set tokenizer)."""

    out: Path
    """Folder of the run; the model folder is `out/model`."""

    overwrite: bool = False
    """Start anew in an `out` that holds a run."""

    resume: bool = False
    """Go on from the newest checkpoint in `out`, on the same curve; under torchrun, begin where
    there is none."""

    preset: str = "quickstart"
    """Size of the model: quickstart, char, tiny, moe, nano or smollm2-135m."""

    depth: int | None = None
    """Size of the model by its number of layers instead, 64 x depth wide: 2 is about 1M parameters
    with the vocabulary, 8 30M, 28 1B."""

    arch: (
        Literal["qwen3", "qwen3_moe", "llama", "mistral", "qwen2", "gpt2", "rnn", "lstm", "gru"]
        | None
    ) = None
    """Architecture; unset means the preset's own, mostly qwen3. rnn, lstm and gru are baselines
    that only llmlab reads."""

    model_config: Path | None = None
    """A config.json, or a folder with one, instead of preset, depth and arch."""

    sliding_window: int | None = None
    """Tokens a layer looks back, but every fourth looks at all; unset, all do."""

    z_loss: float = 0.0
    """Weight of the z-loss, which keeps logits from drifting; 1e-4 is usual, 0 turns it off."""

    activation_checkpointing: bool = False
    """Keep only each layer's input for the backward pass: much less memory, a third slower."""

    tokenizer: Path | None = None
    """Tokenizer folder that sources of text are packed with, or that shards must come from; unset
    accepts what they were packed with."""

    weights: tuple[float, ...] = ()
    """Share of the windows from each shards folder, in any unit; none goes by their sizes."""

    packing: Packing = "stream"
    """stream cuts windows from the text end to end; best-fit places documents whole, with some
    padding."""

    document_mask: bool = False
    """Keep attention inside documents."""

    tokenize_ahead: bool = True
    """Begin to train on text while the rest is still being tokenized; its windows are then shuffled
    2 million tokens at a time. Off, it is packed first and shuffled as a whole."""

    max_steps: int | None = None
    """Budget in optimizer steps."""

    max_seconds: float | None = None
    """Budget in seconds of training, evaluations and compilation included."""

    max_tokens: int | None = None
    """Budget in tokens."""

    context_len: int = 256
    """Tokens in one training window, and the longest context of the model."""

    batch_tokens: int | None = None
    """Tokens in one optimizer step, a multiple of context_len x accumulation; unset follows the
    size of the model."""

    accumulation: int = 1
    """Micro-batches a step is cut into, to save memory."""

    optimizer: Literal["adamw", "muon", "lion"] = "muon"
    """The rule of the update; muon moves the hidden matrices, and AdamW the rest."""

    learning_rate: float | None = None
    """Peak learning rate; unset follows the optimizer and the width of the model."""

    find_lr: bool = False
    """Train nothing; find a learning rate by a short run whose rate rises (lr.json, lr.html)."""

    schedule: Literal["cosine", "wsd", "linear"] = "cosine"
    """After the warm-up: half a cosine, constant with a decay at the end (wsd), or a line."""

    decay_fraction: float = 0.2
    """wsd: share of the budget, at its end, over which the rate decays."""

    decay_shape: Literal["linear", "sqrt"] = "sqrt"
    """wsd: the decay falls linearly, or as 1 - sqrt(x), steep at first."""

    min_lr_fraction: float = 0.1
    """The schedule ends at this fraction of the peak."""

    warmup_steps: int = 50
    """Steps of linear warm-up."""

    weight_decay: float = 0.1
    """Decoupled decay, on weight matrices only."""

    betas: tuple[float, float] | None = None
    """Decay rates of the two moments; unset means (0.9, 0.95), and (0.9, 0.99) for lion."""

    grad_clip: float = 1.0
    """Largest L2 norm of the gradient; 0 turns clipping off."""

    skip_spikes: bool = False
    """Leave out the update of a step whose loss or gradient norm is far above the last ones."""

    ema_decay: float = 0.0
    """Validate and export an average of the weights that forgets this slowly, for example 0.999;
    0 keeps none."""

    eval_every: int = 200
    """Steps between validations; 0 validates at the end only."""

    eval_tokens: int = 32_768
    """Tokens of the validation split scored on the way: always its first ones."""

    final_eval_tokens: int = 1_048_576
    """Most tokens of the validation split scored at the end."""

    sample_every: int = 200
    """Steps between samples; 0 samples at the end only."""

    prompts: tuple[str, ...] = ("def read", "class ", "import ", '    """Return ')
    """What the samples continue."""

    sample_tokens: int = 64
    """Tokens in one sample."""

    sample_temperature: float = 0.8
    """Temperature of the samples; 0 takes the likeliest token."""

    checkpoint_every: int = 500
    """Steps between checkpoints; 0 saves at the end (or at an interrupt) only."""

    keep_checkpoints: int = 2
    """Newest checkpoints to keep."""

    seed: int = 0
    """Seed of the weights, of the order of the data and of the samples."""

    tensorboard: bool = False
    """Write the rows of metrics.jsonl as TensorBoard files too, into out/tensorboard."""

    log: tuple[Literal["wandb", "trackio"], ...] = ()
    """Hand the rows of metrics.jsonl to these services too; unset, nothing leaves the machine."""

    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; auto uses it when the run is expected to take over two minutes."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute dtype; auto times one matrix product in each."""

    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: each process holds the whole model, or a share of it (FSDP2)."""

    def __post_init__(self) -> None:
        """Refuse values that no run can use.

        Raises:
            ConfigError: names the field, its value and a value that works.
        """
        for name in ("context_len", "batch_tokens", "accumulation", "eval_tokens",
                     "final_eval_tokens", "sample_tokens"):  # fmt: skip
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name}={value} must be at least 1")
        unit = self.context_len * self.accumulation
        if self.batch_tokens is not None and self.batch_tokens % unit:
            low = self.batch_tokens // unit * unit
            tries = f"{low} or {low + unit}" if low else str(unit)
            raise ConfigError(
                f"batch_tokens={self.batch_tokens} is not a multiple of context_len x accumulation"
                f"={unit}; try {tries}"
            )
        if self.resume and self.overwrite:
            raise ConfigError(
                "resume=True goes on with the run in out, overwrite=True deletes it; choose one"
            )
        if self.sample_temperature < 0:
            raise ConfigError(
                f"sample_temperature={self.sample_temperature} must be 0 or more; try 0.8"
            )
        if self.z_loss < 0:
            raise ConfigError(f"z_loss={self.z_loss} must be 0 or more; try 1e-4")
        for name in ("arch", "depth"):
            if self.model_config is not None and getattr(self, name) is not None:
                raise ConfigError(
                    f"{name}={getattr(self, name)} has no effect beside model_config="
                    f"{self.model_config}, which names its own; leave one of them out"
                )
        _ = self.plan

    @property
    def batch_size(self) -> int:
        """Windows in one micro-batch, B; one where `batch_tokens` is left open."""
        unit = self.context_len * self.accumulation
        return (self.batch_tokens or unit) // unit

    @property
    def trackers(self) -> tuple[str, ...]:
        """Names of the trackers asked for."""
        return (*(("tensorboard",) if self.tensorboard else ()), *self.log)

    @property
    def plan(self) -> TrainingPlan:
        """The plan of the training loop; a learning rate left open is that of TrainingPlan.

        Raises:
            ConfigError: no budget, or a number out of its range.
        """
        return TrainingPlan(
            max_steps=1 if self.find_lr else self.max_steps,
            max_seconds=self.max_seconds,
            max_tokens=self.max_tokens,
            optimizer=self.optimizer,
            learning_rate=TrainingPlan.learning_rate
            if self.learning_rate is None
            else self.learning_rate,
            schedule=self.schedule,
            decay_fraction=self.decay_fraction,
            decay_shape=self.decay_shape,
            min_lr_fraction=self.min_lr_fraction,
            warmup_steps=self.warmup_steps,
            weight_decay=self.weight_decay,
            betas=self.betas,
            grad_clip=self.grad_clip,
            skip_spikes=self.skip_spikes,
            ema_decay=self.ema_decay,
            accumulation=self.accumulation,
            eval_every=self.eval_every,
            sample_every=self.sample_every,
            checkpoint_every=self.checkpoint_every,
            keep_checkpoints=self.keep_checkpoints,
            seed=self.seed,
            compile=self.compile,
            dtype=self.dtype,
            parallel=self.parallel,
        )
