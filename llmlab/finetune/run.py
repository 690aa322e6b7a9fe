"""Finetuning: a model folder and chats in, an adapter or a model folder out.

Writes into `out`: config.toml, metrics.jsonl, checkpoint-N/, and at the end adapter/ (lora) or
model/ (full). Not here: the loop (llmlab.training), the data (sft_data.py), merging (merging.py).
"""

import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from llmlab.config import save_config
from llmlab.errors import ConfigError
from llmlab.finetune.adapter import save_adapter
from llmlab.finetune.config import FinetuneConfig
from llmlab.finetune.lora import add_lora
from llmlab.finetune.sft_data import Example, ExampleBatches, Examples, pad_batch, read_examples
from llmlab.hardware import pick_device
from llmlab.model import LanguageModel, load_model, save_model
from llmlab.outputs import check_free
from llmlab.tokenizers import Tokenizer
from llmlab.track import OnProgress, silent
from llmlab.training import Hooks, TrainState, train

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
    """The same after training."""


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
    evaluate = _evaluator(model, examples.val, _pad_id(tokenizer), config.batch_size)
    base_val_loss = evaluate() if evaluate else None
    state = _train(config, model, tokenizer, examples, evaluate, on_progress)
    folder = config.out / _FOLDERS[config.method]
    if state.status == "finished":
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
        val_loss=evaluate() if evaluate else None,
    )


def _check_out(config: FinetuneConfig) -> None:
    if not config.resume:
        check_free(config.out, overwrite=config.overwrite)
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


def _train(
    config: FinetuneConfig,
    model: LanguageModel,
    tokenizer: Tokenizer,
    examples: Examples,
    evaluate: Callable[[], float] | None,
    on_progress: OnProgress,
) -> TrainState:
    batches = ExampleBatches(
        examples.train,
        batch_size=config.batch_size,
        pad_id=_pad_id(tokenizer),
        seed=config.seed,
    )
    measure = (lambda step: {"val_loss": evaluate()}) if evaluate else None
    return train(
        model,
        batches,
        config.plan(batches.num_batches),
        out=config.out,
        hooks=Hooks(on_progress=on_progress, evaluate=measure),
        resume=config.resume,
    )


def _evaluator(
    model: LanguageModel, examples: list[Example], pad_id: int, batch_size: int
) -> Callable[[], float] | None:
    """Return a function that measures nats a scored token on the held-out examples."""
    if not examples:
        return None
    by_len = sorted(examples, key=lambda example: len(example.ids))
    groups = [by_len[at : at + batch_size] for at in range(0, len(by_len), batch_size)]

    @torch.no_grad()
    def measure() -> float:
        was_training, device = model.training, next(model.parameters()).device
        model.eval()
        nats, count = 0.0, 0
        for group in groups:
            input_ids, labels = pad_batch(group, pad_id)
            total, scored = model.loss_sum(input_ids.to(device), labels.to(device))
            nats, count = nats + float(total), count + int(scored)
        model.train(was_training)
        return nats / count

    return measure


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
