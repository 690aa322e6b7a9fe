"""The training loop: the only one, for pretraining and finetuning.

    state = train(model, batches, plan, out=folder, hooks=Hooks(evaluate=measure), resume=False)

trains the parameters of `model` that require a gradient, in place, until a budget of `plan` is used
up. It writes `metrics.jsonl` and `checkpoint-N/` into the run's folder; resumed from one of these,
it goes on exactly as if it had never stopped. Several processes under torchrun make the same calls
and train one model; what only one may do, such as logging, rank 0 does.

Not here: which model, which data, what an evaluation measures; they are passed in (hooks.py). How a
step is computed (step.py, computing.py), where a run starts (start.py), what a checkpoint holds
(checkpoint.py).
"""

import contextlib
import dataclasses
import errno
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import torch

from llmlab.data.batch import Batch
from llmlab.errors import DataError, ModelError, OutputError
from llmlab.model.language_model import LanguageModel
from llmlab.track import MetricsLog, silent
from llmlab.track.progress import format_row
from llmlab.training.averaging import averaged, keep_average, use_average
from llmlab.training.checkpoint import CheckpointWriter, Position, best_val_loss
from llmlab.training.computing import choose_computing, unchanged_generators
from llmlab.training.distributed import (
    gather,
    gathered,
    is_first,
    on_first,
    rank,
    replicated,
    shard,
    sum_over_ranks,
)
from llmlab.training.hooks import BatchSource, Hooks, TrainState
from llmlab.training.interrupt import caught_interrupts
from llmlab.training.optimizer import build_optimizer, trainable_parameters
from llmlab.training.plan import TrainingPlan
from llmlab.training.schedule import learning_rate, progress
from llmlab.training.spikes import SpikeGuard
from llmlab.training.start import find_start, go_to
from llmlab.training.step import add_gradient, autocast, clip_gradient, first_not_finite


def train(
    model: LanguageModel,
    batches: BatchSource,
    plan: TrainingPlan,
    *,
    out: Path,
    hooks: Hooks | None = None,
    resume: bool = False,
    flops_per_token: float = 0.0,
) -> TrainState:
    """Train `model` in place until a budget of `plan` is used up.

    A SIGINT or SIGTERM ends it after the step at hand, with a checkpoint; a second SIGINT at once.

    Args:
        model: its device is where training happens; its weights stay in their dtype. A finished
            run leaves all of them on every rank.
        batches: the batch source; each rank's gives its own rows of the same batches.
        plan: budgets, optimizer, cadence.
        out: folder of the run, created when missing.
        hooks: what to call on the way.
        resume: go on from the newest checkpoint in `out`.
        flops_per_token: forward and backward, for `mfu` and for judging whether compilation
            repays itself; 0 when unknown.

    Raises:
        ModelError: a loss or gradient is not finite (that step updated nothing), or there is no
            checkpoint to resume from.
        DataError: a step has no scored label.
        OutputError: the disk is full, or `out` holds a run and `resume` is false.
    """
    hooks = hooks or Hooks()
    if not is_first():
        hooks = dataclasses.replace(hooks, on_progress=silent, trackers=())
    with _disk_errors(out):
        run = _Run(model, batches, plan, out, hooks, resume=resume, flops_per_token=flops_per_token)
        log = MetricsLog(out / "metrics.jsonl" if is_first() else os.devnull, hooks.trackers)
        with caught_interrupts() as interrupted, log as metrics, run.writer:
            while not run.finished:
                run.step(metrics, interrupted)
                if run.interrupted:
                    return run.end("interrupted")
                run.pause(metrics)
            run.pause(metrics, last=True)
            return run.end("finished")


class _Run:
    """The moving parts of one call of `train`."""

    def __init__(
        self,
        model: LanguageModel,
        batches: BatchSource,
        plan: TrainingPlan,
        out: Path,
        hooks: Hooks,
        *,
        resume: bool,
        flops_per_token: float,
    ) -> None:
        self.model, self.batches, self.plan, self.hooks = model, batches, plan, hooks
        self.device = next(model.parameters()).device
        checkpoint = find_start(out, resume=resume)
        if plan.parallel == "fsdp":
            shard(model)
        self.optimizer = build_optimizer(model, plan)
        self.trained = trainable_parameters(model)
        if plan.ema_decay:
            keep_average(self.optimizer, plan.ema_decay)
        torch.manual_seed(plan.seed + rank())  # each rank drops out others
        if checkpoint is not None:
            go_to(checkpoint, model, self.optimizer, batches, plan, hooks.on_progress)
        model.train()
        began = checkpoint.position if checkpoint else None
        self.position = began or Position()
        self.saved = checkpoint.folder if checkpoint else None
        self.best = on_first(lambda: best_val_loss(out))
        self.evaluated = self.sampled = self.position.step
        self.guard = SpikeGuard.from_state(self.position.spikes)
        self.clock_start = time.monotonic() - self.position.elapsed_s
        self.writer = CheckpointWriter(
            out, keep=plan.keep_checkpoints, background=self.device.type == "cuda"
        )
        chosen = choose_computing(
            model,
            self.optimizer,
            batches,
            plan,
            began=began,
            finished=self.finished,
            flops_per_token=flops_per_token,
            on_progress=hooks.on_progress,
        )
        self.loss_sum = replicated(model, chosen.loss_sum)
        self.flops_per_token, self.flops_per_s = flops_per_token, chosen.flops_per_s
        self.position = dataclasses.replace(
            self.position, dtype=chosen.dtype, compiled=chosen.compiled
        )
        self.loss = math.nan
        self.interrupted = False

    # One step

    def step(self, metrics: MetricsLog, interrupted: Callable[[], bool]) -> None:
        """Make one optimizer step and log it."""
        start = time.monotonic()
        number = self.position.step + 1
        micro_batches = [self.batches.next() for _ in range(self.plan.accumulation)]
        self.loss, grad_norm = self._gradient(number, micro_batches)
        read, seconds, signals = sum_over_ranks(
            sum(batch.input_ids.numel() for batch in micro_batches),
            self._elapsed_s() if is_first() else 0.0,  # one clock decides for all
            interrupted(),
        )
        self.interrupted = signals > 0
        tokens = self.position.tokens + int(read)
        used = progress(self.plan, steps=number, tokens=tokens, seconds=seconds)
        rate = learning_rate(self.plan, step=number, progress=used)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if not self._left_out(number, grad_norm):
            with autocast(self.device, self.position.dtype):  # for muon's matrix products
                self.optimizer.step()
        self.optimizer.zero_grad()
        per_s = (tokens - self.position.tokens) / (time.monotonic() - start)
        self.position = dataclasses.replace(
            self.position, step=number, tokens=tokens, elapsed_s=seconds, val_loss=None
        )
        if _due(number, self.plan.log_every) or self.finished:
            self._log(metrics, rate, grad_norm, per_s)

    def _gradient(self, number: int, micro_batches: list[Batch]) -> tuple[float, float]:
        """Return loss and gradient norm; say which step it was when there is none."""
        try:
            loss = add_gradient(
                self.loss_sum, micro_batches, device=self.device, dtype=self.position.dtype
            )
            return loss, clip_gradient(self.trained, loss, self.plan.grad_clip)
        except DataError as error:
            raise DataError(f"step {number}: {error}") from error
        except ModelError as error:
            good = f"the last good state is {self.saved}" if self.saved else "nothing was saved yet"
            first = first_not_finite(
                self.model, micro_batches, device=self.device, dtype=self.position.dtype
            )
            raise ModelError(
                f"step {number}: {error}{first}; stopped before the update, {good}. Lower "
                f"learning_rate={self.plan.learning_rate} or raise warmup_steps="
                f"{self.plan.warmup_steps}"
            ) from error

    def _left_out(self, number: int, grad_norm: float) -> bool:
        """Note a spike; tell whether the update is to be left out for it."""
        spike = self.guard.check(self.loss, grad_norm)
        if spike:
            outcome = "the update is left out" if self.plan.skip_spikes else "going on"
            self._note(f"step {number}: {spike}; {outcome}")
        return spike is not None and self.plan.skip_spikes

    def _log(self, metrics: MetricsLog, rate: float, grad_norm: float, per_s: float) -> None:
        at = self.position
        row = {
            "step": at.step,
            "loss": self.loss,
            "lr": rate,
            "grad_norm": grad_norm,
            "tokens": at.tokens,
            "tok_per_s": per_s,
        }
        if self.flops_per_s:
            row["mfu"] = per_s * self.flops_per_token / self.flops_per_s
        if self.guard.spikes:
            row["spikes"] = self.guard.spikes
        metrics.write({**row, "elapsed_s": at.elapsed_s})
        used = self._used()
        steps = f"{at.step}/{self.plan.max_steps}" if self.plan.max_steps else at.step
        eta_s = at.elapsed_s * (1 - used) / used
        self.hooks.on_progress({**row, "step": steps, "eta": eta_s})

    # Between steps

    @property
    def finished(self) -> bool:
        """Whether a budget is used up."""
        return self._used() >= 1.0

    def pause(self, metrics: MetricsLog, *, last: bool = False) -> None:
        """Evaluate, sample and save, each where it is due."""
        step, hooks, plan = self.position.step, self.hooks, self.plan
        is_best = False
        if hooks.evaluate and self.evaluated < step and (last or _due(step, plan.eval_every)):
            with self._aside(), autocast(self.device, self.position.dtype):
                mine = {"step": step, **hooks.evaluate(step)}
            row = on_first(lambda: mine)
            self.evaluated = step
            is_best = self._is_best(row.get("val_loss"))
            metrics.write(row)
            hooks.on_progress({"note": format_row(row), **row})
        if hooks.sample and self.sampled < step and (last or _due(step, plan.sample_every)):
            with self._aside():
                if is_first():
                    hooks.sample(step)
            self.sampled = step
        if _due(step, plan.checkpoint_every) or (is_best and plan.checkpoint_every):
            self._save()

    def _is_best(self, val_loss: float | None) -> bool:
        """Note the validation loss of this step; tell whether it is the lowest so far."""
        if val_loss is None or not math.isfinite(val_loss):
            return False
        self.position = dataclasses.replace(self.position, val_loss=val_loss)
        if self.best is not None and val_loss >= self.best:
            return False
        self.best = val_loss
        return True

    def end(self, status: Literal["finished", "interrupted"]) -> TrainState:
        """Save what is not saved yet, and say how it ended."""
        at, checkpoint = self.position, self._save()
        self.writer.wait()
        if status == "finished":
            if self.plan.ema_decay:
                use_average(self.optimizer)
            gather(self.model)
        return TrainState(
            status=status,
            step=at.step,
            tokens=at.tokens,
            elapsed_s=self._elapsed_s(),
            loss=self.loss,
            dtype=at.dtype,
            checkpoint=checkpoint,
        )

    def _save(self) -> Path:
        if self.saved is None or self.saved.name != f"checkpoint-{self.position.step}":
            position = dataclasses.replace(
                self.position, elapsed_s=self._elapsed_s(), spikes=self.guard.state_dict()
            )
            self.saved = self.writer.save(
                model=self.model,
                optimizer=self.optimizer,
                batches=self.batches.state_dict(),
                position=position,
                plan=self.plan,
            )
        return self.saved

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        self.model.eval()
        average = averaged(self.optimizer) if self.plan.ema_decay else contextlib.nullcontext()
        try:
            unchanged = unchanged_generators(self.device)
            with torch.no_grad(), unchanged, average, gathered(self.model):
                yield
        finally:
            self.model.train()

    def _used(self) -> float:
        at = self.position
        return progress(self.plan, steps=at.step, tokens=at.tokens, seconds=at.elapsed_s)

    def _elapsed_s(self) -> float:
        return time.monotonic() - self.clock_start

    def _note(self, text: str) -> None:
        self.hooks.on_progress({"note": text})


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


@contextlib.contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    """A full disk met while logging, as an OutputError; checkpoints have their own."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OutputError(
            f"cannot write into {out}: {error.strerror}; free some space, then go on with --resume"
        ) from error
