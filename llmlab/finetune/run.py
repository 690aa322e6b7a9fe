"""Finetuning: a model folder and chats in, an adapter or a model folder out.

Writes into `out`: config.toml, metrics.jsonl, checkpoint-N/, and at the end adapter/ (lora) or
model/ (full). Not here: the loop (llmlab.training), the data (sft_data.py), merging (merging.py).
"""

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from llmlab.config import save_config
from llmlab.errors import ConfigError, ModelError
from llmlab.finetune.adapter import save_adapter
from llmlab.finetune.config import FinetuneConfig
from llmlab.finetune.lora import add_lora
from llmlab.finetune.sft_data import Example, ExampleBatches, Examples, pad_batch, read_examples
from llmlab.hardware import pick_device
from llmlab.model import LanguageModel, load_model, save_model
from llmlab.outputs import check_free
from llmlab.tokenizers import Tokenizer
from llmlab.track import OnProgress, silent
from llmlab.training import Hooks, TrainState, find_latest, train

_FOLDERS = {"lora": "adapter", "full": "model"}


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """What `finetune` did."""

    folder: Path
    """The adapter folder (lora) or the model folder (full); not there yet if interrupted."""

    method: Literal["lora", "full"]
    """What was trained."""

    status: Literal["finished", "interrupted"]
    """interrupted: a checkpoint was saved; go on with resume=True."""

    num_examples: int
    """Examples trained on."""

    num_val: int
    """Examples held out."""

    num_too_long: int
    """Examples left out for their length."""

    trained_parameters: int
    """Numbers that were trained."""

    parameters: int
    """Numbers in the model, the adapter's included."""

    steps: int
    """Optimizer steps."""

    seconds: float
    """Seconds of training."""

    loss: float
    """Loss of the last step in nats a scored token."""

    base_val_loss: float | None
    """Nats a scored token on the held-out examples before training; None if none are held out."""

    val_loss: float | None
    """The same after training; None also if interrupted."""


def finetune(config: FinetuneConfig, *, on_progress: OnProgress = silent) -> FinetuneResult:
    """Train a model to answer as the examples do.

    Raises:
        ConfigError, DataError, ModelError, TokenizerError: something given cannot be used.
        OutputError: `out` exists or cannot be written.
    """
    _check_out(config)
    model, tokenizer = load_model(config.model, device=pick_device())
    examples = read_examples(
        config.data,
        tokenizer,
        max_len=_max_len(config, model),
        val_fraction=config.val_fraction,
    )
    on_progress({"note": _describe(examples)})
    _prepare_out(config)
    if config.method == "lora":
        add_lora(model, config.lora, seed=config.seed)
    validation = _Validation(model, examples.val, _pad_id(tokenizer), config.batch_size)
    base_val_loss = validation.at(step=0)
    state = _train(config, model, tokenizer, examples, validation, on_progress)
    finished, folder = state.status == "finished", config.out / _FOLDERS[config.method]
    if finished:
        _save(config, model, tokenizer, folder)
    trained = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    return FinetuneResult(
        folder=folder,
        method=config.method,
        status=state.status,
        num_examples=len(examples.train),
        num_val=len(examples.val),
        num_too_long=examples.num_too_long,
        trained_parameters=sum(trained),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        steps=state.step,
        seconds=state.elapsed_s,
        loss=state.loss,
        base_val_loss=base_val_loss,
        val_loss=validation.at(step=state.step) if finished else None,
    )


def _check_out(config: FinetuneConfig) -> None:
    if not config.resume:
        check_free(config.out, overwrite=config.overwrite)
    elif find_latest(config.out) is None:
        raise ModelError(
            f"{config.out} has no usable checkpoint-N to resume from; start without --resume"
        )
    if config.model.resolve().is_relative_to(config.out.resolve()):
        raise ConfigError(
            f"model={config.model} lies inside out={config.out}; choose another --out"
        )


def _prepare_out(config: FinetuneConfig) -> None:
    """Make the run's folder; take away what an earlier run left in it, and nothing else."""
    config.out.mkdir(parents=True, exist_ok=True)
    if not config.resume:
        for path in (
            *config.out.glob("checkpoint-*"),
            *map(config.out.joinpath, _FOLDERS.values()),
        ):
            if path.is_dir():
                shutil.rmtree(path)
        (config.out / "metrics.jsonl").unlink(missing_ok=True)
    again = dataclasses.replace(config, resume=False, overwrite=False)
    save_config(again, config.out / "config.toml")


def _max_len(config: FinetuneConfig, model: LanguageModel) -> int:
    """The longest example in tokens: one more than the model's inputs, the last is only scored."""
    context = model.config.max_position_embeddings
    if config.max_len is not None and config.max_len > context + 1:
        raise ConfigError(
            f"max_len={config.max_len} is beyond the model's context of {context} tokens; "
            f"try {context}"
        )
    return config.max_len or context + 1


class _Validation:
    """Nats a scored token on the held-out examples, in float32, once for each step asked for."""

    def __init__(
        self, model: LanguageModel, examples: list[Example], pad_id: int, batch_size: int
    ) -> None:
        by_len = sorted(examples, key=lambda example: len(example.ids))
        starts = range(0, len(by_len), batch_size)
        self._groups = [by_len[start : start + batch_size] for start in starts]
        self._model, self._pad_id = model, pad_id
        self._found: dict[int, float] = {}

    def row(self, step: int) -> dict[str, float]:
        """The hook of the training loop; something is held out."""
        self._found[step] = self._measure()
        return {"val_loss": self._found[step]}

    def at(self, step: int) -> float | None:
        """The number at this step, which is now; None if nothing is held out."""
        if self._groups and step not in self._found:
            self.row(step)
        return self._found.get(step)

    @torch.no_grad()
    def _measure(self) -> float:
        was_training, device = self._model.training, next(self._model.parameters()).device
        self._model.eval()
        nats, count = 0.0, 0
        for group in self._groups:
            batch = pad_batch(group, self._pad_id).to(device)
            total, scored = self._model.loss_sum(*batch.arguments)
            nats, count = nats + float(total), count + int(scored)
        self._model.train(was_training)
        return nats / count


def _train(
    config: FinetuneConfig,
    model: LanguageModel,
    tokenizer: Tokenizer,
    examples: Examples,
    validation: _Validation,
    on_progress: OnProgress,
) -> TrainState:
    batches = ExampleBatches(
        examples.train,
        batch_size=config.batch_size,
        pad_id=_pad_id(tokenizer),
        seed=config.seed,
    )
    evaluate = validation.row if examples.val else None
    return train(
        model,
        batches,
        config.plan(batches.num_batches),
        out=config.out,
        hooks=Hooks(on_progress=on_progress, evaluate=evaluate),
        resume=config.resume,
    )


def _save(config: FinetuneConfig, model: LanguageModel, tokenizer: Tokenizer, folder: Path) -> None:
    if config.method == "lora":
        base = str(config.model.resolve())
        save_adapter(model, config.lora, folder, base_model=base, overwrite=True)
    else:
        save_model(model, tokenizer, folder, overwrite=True)


def _pad_id(tokenizer: Tokenizer) -> int:
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0


def _describe(examples: Examples) -> str:
    text = f"{len(examples.train)} examples to train on, {len(examples.val)} held out"
    return text + (f", {examples.num_too_long} too long, left out" if examples.num_too_long else "")
