"""Pretraining: shards in, model folder out.

The run's folder holds

    config.toml       the settings
    metrics.jsonl     a row for each step and each validation
    journal.jsonl     how it was started and ended, and what it said
    samples.jsonl     what the model wrote on the way
    checkpoint-N/     where a run can go on from
    model/            the model folder, written at the end
    report.md, .html  the report card, written when the run ends, however it ends

Not here: the loop (llmlab/training), the model (llmlab/model), the data (llmlab/data).
"""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from llmlab.config import read_toml, save_config
from llmlab.data import Batches
from llmlab.errors import ConfigError, ModelError
from llmlab.hardware import pick_device
from llmlab.model import build_model, generate, save_model
from llmlab.model.language_model import LanguageModel
from llmlab.outputs import check_free
from llmlab.pretrain.config import PretrainConfig
from llmlab.pretrain.corpus import Corpus
from llmlab.pretrain.facts import peak_memory_bytes, restart_peak_memory, start_facts
from llmlab.pretrain.journal import Journal
from llmlab.pretrain.outlook import memory_bytes, outlook
from llmlab.pretrain.report.page import reported
from llmlab.pretrain.shape import model_config
from llmlab.pretrain.sizing import recipe, sized
from llmlab.pretrain.validation import Validator
from llmlab.tokenizers import Tokenizer
from llmlab.track import MetricsLog, OnProgress, Tracker, opened_trackers, read_metrics, silent
from llmlab.track.trackers import check_installed
from llmlab.training import Hooks, TrainState, find_latest, train
from llmlab.training.checkpoint import rewind_rows
from llmlab.training.distributed import (
    first_ahead,
    is_first,
    is_under_torchrun,
    max_restarts,
    on_first,
    process_group,
    rank,
    world_size,
)
from llmlab.training.step import autocast

_FILES = ("metrics.jsonl", "samples.jsonl", "journal.jsonl", "report.md", "report.html")

OnEval = Callable[[LanguageModel, Tokenizer, int], Mapping[str, float]]
"""`on_eval(model, tokenizer, step)`: more numbers for the validation row."""


@dataclass(frozen=True)
class PretrainResult:
    """How a run ended."""

    status: Literal["finished", "interrupted"]
    """interrupted: there is a checkpoint, but no model folder and no validation."""

    steps: int
    tokens: int
    elapsed_s: float
    num_parameters: int

    train_loss: float
    """Loss of the last step, nats a token."""

    val_loss: float | None
    """Nats a token of the validation split; None without one."""

    bits_per_byte: float | None
    """The same in bits a UTF-8 byte."""

    val_tokens: int
    """Validation tokens scored."""

    out: Path
    """Folder of the run."""

    model: Path | None
    """The model folder."""

    @property
    def report(self) -> Path:
        """The report card."""
        return self.out / "report.html"


def pretrain(
    config: PretrainConfig,
    *,
    on_progress: OnProgress = silent,
    on_eval: OnEval | None = None,
) -> PretrainResult:
    """Train a model from scratch and write it to `config.out / "model"`.

    Under torchrun every process calls it alike, and `out` is a folder that all of them see; rank 0
    writes and reports, and the result is the same on every rank.

    Args:
        config: the settings.
        on_progress: gets the numbers of each step, and notes.
        on_eval: more numbers for each validation row, such as a task's accuracy.

    Raises:
        ConfigError: settings that do not go together.
        DataError: the shards cannot be used.
        ModelError: the loss is not finite, or there is nothing to resume from.
        OutputError: `out` is taken, or the disk is full.
    """
    with process_group(), contextlib.ExitStack() as stack:
        checked = on_first(lambda: _checked(config))
        said = on_progress if is_first() else silent
        with first_ahead():
            corpus = stack.enter_context(Corpus(checked, said, writes=is_first()))
        return _pretrain_on(corpus, checked, said, on_eval)


def _pretrain_on(
    corpus: Corpus, config: PretrainConfig, on_progress: OnProgress, on_eval: OnEval | None
) -> PretrainResult:
    shape = model_config(config, corpus.tokenizer)
    config = sized(config, shape)
    batches = corpus.batches(config.batch_size, rank(), world_size())
    torch.manual_seed(config.seed)
    device = pick_device()
    restart_peak_memory(device)
    recompute = config.activation_checkpointing
    model = build_model(shape, z_loss=config.z_loss, recompute=recompute).to(device)
    micro_batch_tokens = config.batch_size * config.context_len // world_size()
    memory = memory_bytes(
        shape,
        tokens=micro_batch_tokens,
        optimizer=config.optimizer,
        recompute=recompute,
        averaged=config.ema_decay > 0,
    )
    for sentence in outlook(
        shape, context_len=config.context_len, tokens=micro_batch_tokens, memory=memory
    ):
        on_progress({"note": sentence})
    on_progress({"note": recipe(config)})
    on_first(lambda: _prepare_out(config))
    with (
        reported(config.out) if is_first() else contextlib.nullcontext(),
        Journal(config.out, on_progress) as journal,
        _trackers(config, journal) as trackers,
    ):
        journal.started(start_facts(shape, corpus.shards, device, config.context_len, memory))
        reporter = _Reporter(config, model, corpus, batches, journal, on_eval, trackers)
        state = train(
            model,
            batches,
            config.plan,
            out=config.out,
            hooks=reporter.hooks,
            resume=config.resume,
            flops_per_token=model.config.flops_per_token(config.context_len),
        )
        result = reporter.finish(state)
        peak = {"peak_memory_bytes": peak_memory_bytes(device), "dtype": state.dtype}
        journal.ended(result.status, {**peak, "steps": result.steps, "elapsed_s": result.elapsed_s})
    return result


class _Reporter:
    """Validation and samples: on the way as hooks of the loop, and at the end."""

    def __init__(
        self,
        config: PretrainConfig,
        model: LanguageModel,
        corpus: Corpus,
        batches: Batches,
        on_progress: OnProgress,
        on_eval: OnEval | None,
        trackers: tuple[Tracker, ...],
    ) -> None:
        self._config, self._model, self._tokenizer = config, model, corpus.tokenizer
        self._corpus, self._batches = corpus, batches
        self._on_progress, self._on_eval, self._trackers = on_progress, on_eval, trackers
        self._validator = Validator(
            list(zip(corpus.names, corpus.shards, strict=True)),
            batches.shares,
            corpus.tokenizer,
            batch_size=config.batch_size,
            context_len=config.context_len,
            document_ids=config.document_mask,
        )
        if not self._validator:
            folders = ", ".join(str(shards.folder) for shards in corpus.shards)
            self._note(f"{folders} holds out no documents: there will be no validation")

    @property
    def hooks(self) -> Hooks:
        """The hooks of the training loop."""
        evaluates = bool(self._validator) or self._on_eval is not None
        return Hooks(
            on_progress=self._on_progress,
            evaluate=self._evaluate if evaluates else None,
            sample=self._sample if self._config.prompts else None,
            trackers=self._trackers,
        )

    def finish(self, state: TrainState) -> PretrainResult:
        """Validate on the whole split and write the model folder, unless interrupted."""
        result = PretrainResult(
            status=state.status,
            steps=state.step,
            tokens=state.tokens,
            elapsed_s=state.elapsed_s,
            num_parameters=self._model.config.num_parameters,
            train_loss=state.loss,
            val_loss=None,
            bits_per_byte=None,
            val_tokens=0,
            out=self._config.out,
            model=None,
        )
        if state.status == "interrupted":
            return result
        self._model.eval()
        folder = self._config.out / "model"
        on_first(lambda: save_model(self._model, self._tokenizer, folder, overwrite=True))
        return dataclasses.replace(result, model=folder, **self._final_validation(state))

    def _final_validation(self, state: TrainState) -> dict[str, Any]:
        if not self._validator:
            return {}
        device = next(self._model.parameters()).device
        with torch.no_grad(), autocast(device, state.dtype):
            found = self._validator.measure(self._model, self._config.final_eval_tokens)
        numbers = {"val_loss": found.val_loss, "bits_per_byte": found.bits_per_byte}
        row = {"step": state.step, "final": True, **found.row, "val_tokens": found.tokens}
        row |= self._corpus.epochs(self._batches)
        path = self._config.out / "metrics.jsonl"
        # A finished run that is resumed measures it again.
        if is_first() and row not in read_metrics(path):
            with MetricsLog(path, self._trackers) as metrics:
                metrics.write(row)
        return {**numbers, "val_tokens": found.tokens}

    def _evaluate(self, step: int) -> dict[str, float]:
        row: dict[str, float] = {}
        if self._validator:
            row = self._validator.measure(self._model, self._config.eval_tokens).row
        row |= self._corpus.epochs(self._batches)
        if self._on_eval is not None and is_first():
            row.update(self._on_eval(self._model, self._tokenizer, step))
        return row

    def _sample(self, step: int) -> None:
        with MetricsLog(self._config.out / "samples.jsonl") as samples:
            for number, prompt in enumerate(self._config.prompts):
                pieces = generate(
                    self._model,
                    self._tokenizer,
                    prompt,
                    max_tokens=self._config.sample_tokens,
                    temperature=self._config.sample_temperature,
                    seed=self._config.seed,
                )
                text = "".join(pieces)
                samples.write({"step": step, "prompt": prompt, "text": text})
                if number == 0:
                    shown = f"step {step} sample: {json.dumps(prompt + text)[:160]}"
                    self._on_progress({"note": shown, "step": step})

    def _note(self, text: str) -> None:
        self._on_progress({"note": text})


def _trackers(
    config: PretrainConfig, journal: Journal
) -> contextlib.AbstractContextManager[tuple[Tracker, ...]]:
    settings = read_toml(config.out / "config.toml", PretrainConfig)
    names = config.trackers if is_first() else ()
    return opened_trackers(names, folder=config.out, run_id=journal.run_id, settings=settings)


def _checked(config: PretrainConfig) -> PretrainConfig:
    """Check `out`. Under torchrun, which runs one command at every start, --resume may begin."""
    check_installed(config.trackers)
    if not config.resume:
        if max_restarts():
            raise ConfigError(
                f"resume=False, but torchrun may start the run {max_restarts()} more times; add "
                "--resume, which begins anew where there is no checkpoint, or drop --max-restarts"
            )
        check_free(config.out, overwrite=config.overwrite)
    elif find_latest(config.out) is None:
        if is_under_torchrun():
            return dataclasses.replace(config, resume=False)
        raise ModelError(
            f"{config.out} has no usable checkpoint-N to resume from; start without --resume"
        )
    return config


def _prepare_out(config: PretrainConfig) -> None:
    """Make the run's folder; take away what an earlier run left in it, and nothing else."""
    config.out.mkdir(parents=True, exist_ok=True)
    latest = find_latest(config.out) if config.resume else None
    if latest is not None:
        rewind_rows(config.out / "samples.jsonl", int(latest.name.removeprefix("checkpoint-")))
    else:
        folders = (config.out / "model", config.out / "tensorboard")
        for path in (*config.out.glob("checkpoint-*"), *folders):
            if path.is_dir():
                shutil.rmtree(path)
        for name in _FILES:
            (config.out / name).unlink(missing_ok=True)
    again = dataclasses.replace(config, resume=False, overwrite=False)
    save_config(again, config.out / "config.toml")
