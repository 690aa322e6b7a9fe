"""The training loop: the only one, for pretraining and finetuning.

    state = train(model, batches, plan, out=folder, hooks=Hooks(evaluate=measure), resume=False)

trains the parameters of `model` that require a gradient, in place, until a budget of `plan` is used
up. It writes `metrics.jsonl` and `checkpoint-N/` into the run's folder; resumed from one of these,
it goes on exactly as if it had never stopped.

Not here: which model, which data, what an evaluation measures. They are passed in (hooks.py).
"""

import contextlib
import dataclasses
import errno
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch

from llmlab.data.batch import Batch
from llmlab.errors import DataError, ModelError, OutputError
from llmlab.hardware import gemm_flops_per_s, pick_dtype
from llmlab.model.language_model import LanguageModel
from llmlab.track import MetricsLog
from llmlab.track.progress import format_row
from llmlab.training.averaging import averaged, keep_average, use_average
from llmlab.training.checkpoint import (
    Checkpoint,
    Position,
    find_latest,
    load_checkpoint,
    rewind_rows,
    save_checkpoint,
)
from llmlab.training.compilation import LossSum, compiled, missing_compiler, worth_compiling
from llmlab.training.hooks import BatchSource, Hooks, TrainState
from llmlab.training.interrupt import caught_interrupts
from llmlab.training.optimizer import build_optimizer, trainable_parameters
from llmlab.training.plan import TrainingPlan
from llmlab.training.schedule import learning_rate, progress
from llmlab.training.spikes import SpikeGuard
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

    A SIGINT or SIGTERM ends it after the step at hand, with a checkpoint; a second one at once.

    Args:
        model: its device is where training happens; its weights stay in their dtype.
        batches: the batch source.
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
    run = _Run(model, batches, plan, out, hooks or Hooks(), flops_per_token)
    with _disk_errors(out):
        run.start(resume=resume)
        log = MetricsLog(out / "metrics.jsonl", run.hooks.trackers)
        with caught_interrupts() as interrupted, log as metrics:
            while not run.finished:
                run.step(metrics)
                if interrupted():
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
        flops_per_token: float,
    ) -> None:
        self.model, self.batches, self.plan, self.out, self.hooks = model, batches, plan, out, hooks
        self.loss_sum: LossSum = model.loss_sum
        self.optimizer = build_optimizer(model, plan)
        if plan.ema_decay:
            keep_average(self.optimizer, plan.ema_decay)
        self.guard = SpikeGuard()
        self.device = next(model.parameters()).device
        self.flops_per_token, self.flops_per_s = flops_per_token, 0.0
        self.position = Position()
        self.loss = math.nan
        self.saved: Path | None = None
        self.evaluated = self.sampled = 0
        self.clock_start, self.clock_offset = time.monotonic(), 0.0

    # Beginning

    def start(self, *, resume: bool) -> None:
        """Go to the newest checkpoint when resuming; choose dtype and compilation."""
        latest = find_latest(self.out)
        if resume and latest is None:
            raise ModelError(f"{self.out} has no usable checkpoint-N; start it without --resume")
        if latest is not None and not resume:
            raise OutputError(f"{latest} exists; add --resume, or choose another --out")
        self.out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(self.plan.seed)
        began = self._go_to(load_checkpoint(latest)) if latest is not None else None
        self.model.train()
        self._choose_dtype(began)
        self._choose_compilation(began)

    def _go_to(self, checkpoint: Checkpoint) -> Position:
        checkpoint.restore(self.model, self.optimizer)
        self.batches.load_state_dict(checkpoint.batches)
        self.position = checkpoint.position
        self.guard = SpikeGuard.from_state(self.position.spikes)
        self.clock_offset = self.position.elapsed_s
        self.evaluated = self.sampled = self.position.step
        self.saved = checkpoint.folder
        rewind_rows(self.out / "metrics.jsonl", self.position.step)
        changes = "; ".join(self.plan.differences(checkpoint.plan))
        self._note(f"resuming from {checkpoint.folder}" + (f" with {changes}" if changes else ""))
        return checkpoint.position

    def _choose_dtype(self, began: Position | None) -> None:
        """Take the plan's dtype; `auto` stays with the one the run began with."""
        name = self.plan.dtype
        reason = f"{name}, as asked"
        if name == "auto" and began is not None:
            name, reason = began.dtype, f"{began.dtype}, as the run began"
        elif name == "auto":
            picked, reason = pick_dtype(self.device)
            name = str(picked).removeprefix("torch.")
        self.position = dataclasses.replace(self.position, dtype=name)
        if self.flops_per_token:
            size = 4096 if self.device.type == "cuda" else 512
            self.flops_per_s = gemm_flops_per_s(getattr(torch, name), self.device, size=size)
        self._note(f"computing in {reason}")

    def _choose_compilation(self, began: Position | None) -> None:
        """Compile if asked to or if it repays itself; `auto` stays with what the run began with."""
        if self.finished or self.plan.compile == "off":
            return
        batch = self._peek()
        wanted = self.plan.compile == "on" or (began is not None and began.compiled)
        if self.plan.compile == "auto" and began is None:
            wanted = worth_compiling(
                self.plan,
                tokens_per_step=batch.input_ids.numel() * self.plan.accumulation,
                flops_per_token=self.flops_per_token,
                flops_per_s=self.flops_per_s,
            )
        if not wanted:
            return
        if missing := missing_compiler(self.device):
            self._note(f"torch.compile is off: {missing} is not installed")
            return
        self._note("compiling the model")
        with self._unchanged_generators():
            self.loss_sum, note = compiled(
                self.model, lambda loss_sum: self._try_out(loss_sum, batch)
            )
        self._note(note)
        on = self.loss_sum != self.model.loss_sum
        self.position = dataclasses.replace(self.position, compiled=on)

    def _peek(self) -> Batch:
        """The next batch, left where it is."""
        place = self.batches.state_dict()
        batch = self.batches.next()
        self.batches.load_state_dict(place)
        return batch.to(self.device)

    def _try_out(self, loss_sum: LossSum, batch: Batch) -> None:
        with autocast(self.device, self.position.dtype):
            total, _ = loss_sum(*batch.arguments)
        total.backward()
        self.optimizer.zero_grad()

    # One step

    def step(self, metrics: MetricsLog) -> None:
        """Make one optimizer step and log it."""
        start = time.monotonic()
        number = self.position.step + 1
        micro_batches = [self.batches.next() for _ in range(self.plan.accumulation)]
        tokens = self.position.tokens + sum(batch.input_ids.numel() for batch in micro_batches)
        self.loss, grad_norm = self._gradient(number, micro_batches)
        used = progress(self.plan, steps=number, tokens=tokens, seconds=self._elapsed_s())
        rate = learning_rate(self.plan, step=number, progress=used)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if not self._left_out(number, grad_norm):
            with autocast(self.device, self.position.dtype):  # for muon's matrix products
                self.optimizer.step()
        self.optimizer.zero_grad()
        per_s = (tokens - self.position.tokens) / (time.monotonic() - start)
        self.position = dataclasses.replace(
            self.position, step=number, tokens=tokens, elapsed_s=self._elapsed_s()
        )
        if _due(number, self.plan.log_every) or self.finished:
            self._log(metrics, rate, grad_norm, per_s)

    def _gradient(self, number: int, micro_batches: list[Batch]) -> tuple[float, float]:
        """Return loss and gradient norm; say which step it was when there is none."""
        try:
            loss = add_gradient(
                self.loss_sum, micro_batches, device=self.device, dtype=self.position.dtype
            )
            trained = trainable_parameters(self.model)
            return loss, clip_gradient(trained, loss, self.plan.grad_clip)
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
        if hooks.evaluate and self.evaluated < step and (last or _due(step, plan.eval_every)):
            with self._aside(), autocast(self.device, self.position.dtype):
                row = {"step": step, **hooks.evaluate(step)}
            self.evaluated = step
            metrics.write(row)
            self.hooks.on_progress({"note": format_row(row), **row})
        if hooks.sample and self.sampled < step and (last or _due(step, plan.sample_every)):
            with self._aside():
                hooks.sample(step)
            self.sampled = step
        if _due(step, plan.checkpoint_every):
            self._save()

    def end(self, status: Literal["finished", "interrupted"]) -> TrainState:
        """Save what is not saved yet, and say how it ended."""
        at, checkpoint = self.position, self._save()
        if status == "finished" and self.plan.ema_decay:
            use_average(self.optimizer)
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
            self.position = dataclasses.replace(
                self.position, elapsed_s=self._elapsed_s(), spikes=self.guard.state_dict()
            )
            self.saved = save_checkpoint(
                self.out,
                model=self.model,
                optimizer=self.optimizer,
                batches=self.batches.state_dict(),
                position=self.position,
                plan=self.plan,
            )
        return self.saved

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        self.model.eval()
        average = averaged(self.optimizer) if self.plan.ema_decay else contextlib.nullcontext()
        try:
            with torch.no_grad(), self._unchanged_generators(), average:
                yield
        finally:
            self.model.train()

    def _unchanged_generators(self) -> contextlib.AbstractContextManager[None]:
        return torch.random.fork_rng([self.device] if self.device.type == "cuda" else [])

    def _used(self) -> float:
        at = self.position
        return progress(self.plan, steps=at.step, tokens=at.tokens, seconds=at.elapsed_s)

    def _elapsed_s(self) -> float:
        return self.clock_offset + time.monotonic() - self.clock_start

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
