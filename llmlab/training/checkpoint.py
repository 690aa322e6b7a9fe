"""checkpoint-N folders: everything a run needs to go on as if it had never stopped.

Each holds the tensors of the run (snapshot.py) and `checkpoint.json`: step, tokens, seconds, the
plan, the place in the data, the validation loss, and the size and SHA-256 of every other file. A
checkpoint appears whole or not at all, disappears at once, and one whose bytes changed is passed
over. The last few are kept, and the one with the lowest validation loss.

Not here: model folders for other programs (llmlab/model).
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import re
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn, optim
from torch.distributed.checkpoint.api import CheckpointException

from llmlab.errors import ModelError, OutputError
from llmlab.outputs import whole_file, whole_folder
from llmlab.track import read_metrics
from llmlab.training.distributed import is_first, on_first, second_group, world_size
from llmlab.training.plan import TrainingPlan
from llmlab.training.snapshot import (
    copied,
    read_tensors,
    restore_tensors,
    state_tensors,
    write_tensors,
)

_log = logging.getLogger(__name__)
_NAME = re.compile(r"checkpoint-(\d+)")
_LEFTOVER = re.compile(r"\.checkpoint-\d+\.(partial|old)")


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run stands, and how it computes."""

    step: int = 0
    """Optimizer steps made."""

    tokens: int = 0
    """Tokens put through the model."""

    elapsed_s: float = 0.0
    """Seconds spent inside `train`."""

    dtype: str = "float32"
    """Compute dtype that was chosen."""

    compiled: bool = False
    """Whether torch.compile was on."""

    val_loss: float | None = None
    """Validation loss at this step, if it was measured here."""

    spikes: dict[str, Any] = dataclasses.field(default_factory=dict)
    """State of the guard against loss spikes."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What checkpoint.json says; `restore` puts the tensors into a model and an optimizer."""

    folder: Path
    position: Position
    plan: dict[str, Any]
    """The fields of the TrainingPlan the run was using."""

    batches: dict[str, Any]
    """State of the batch source."""

    groups: list[dict[str, Any]]
    """The optimizer's groups, without their parameters."""

    def tensors(self) -> dict[str, Tensor]:
        """Return all its tensors, whole, in the memory of the CPU, by the names of snapshot.py."""
        return read_tensors(self.folder)

    def restore(self, model: nn.Module, optimizer: optim.Optimizer) -> None:
        """Put parameters, optimizer state and random generators back.

        Every rank must call it, however many wrote the checkpoint. Settings of the optimizer stay
        as they are; what it counts in its groups goes on.

        Raises:
            ModelError: the parameters are not those of `model`.
        """
        restore_tensors(self.folder, model, optimizer)
        for group, saved in zip(optimizer.param_groups, self.groups, strict=False):
            group.update({key: value for key, value in saved.items() if key not in group})


class CheckpointWriter:
    """Writes the checkpoints of one run; every rank has one and calls it alike.

    Args:
        out: folder of the run; when there are several ranks, one that all of them share.
        keep: how many of the last to keep, beside the best.
        background: copy the tensors and write them while training goes on, for a GPU.
    """

    def __init__(self, out: Path, *, keep: int, background: bool = False) -> None:
        self._out, self._keep = out, keep
        self._thread = ThreadPoolExecutor(1) if background else None
        self._under_way: Future[None] | None = None
        self._group = second_group()
        on_first(lambda: _remove_leftovers(out))

    def save(
        self,
        *,
        model: nn.Module,
        optimizer: optim.Optimizer,
        batches: dict[str, Any],
        position: Position,
        plan: TrainingPlan,
    ) -> Path:
        """Write `out/checkpoint-N`, then remove those that are neither among the last nor best.

        Args:
            model: its trainable parameters are stored.
            optimizer: its whole state is stored.
            batches: state of the batch source, as JSON holds it.
            position: steps, tokens and seconds so far.
            plan: stored beside them.

        Returns:
            The new folder; in the background it is there after `wait`.

        Raises:
            OutputError: it, or one before it, cannot be written; older ones are untouched.
        """
        self.wait()
        folder = self._out / f"checkpoint-{position.step}"
        tensors = state_tensors(model, optimizer)
        facts = {
            "position": dataclasses.asdict(position),
            "plan": dataclasses.asdict(plan),
            "batches": batches,
            "groups": [
                {key: value for key, value in group.items() if key != "params"}
                for group in optimizer.param_groups
            ],
            "world_size": world_size(),
        }
        if self._thread is None:
            self._write(folder, tensors, facts)
        else:
            self._under_way = self._thread.submit(self._write, folder, copied(tensors), facts)
        return folder

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Finish what is being written; what went wrong before counts more."""
        with contextlib.suppress(OutputError) if error else contextlib.nullcontext():
            self.wait()

    def wait(self) -> None:
        """Wait until nothing is being written in the background.

        Raises:
            OutputError: it could not be written.
        """
        if self._under_way is not None:
            under_way, self._under_way = self._under_way, None
            under_way.result()

    def _write(self, folder: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        with contextlib.ExitStack() as stack:
            partial = on_first(
                lambda: stack.enter_context(whole_folder(folder, overwrite=True)), self._group
            )
            try:
                write_tensors(tensors, partial, self._group)
                if is_first():
                    files = {path.name: _fingerprint(path) for path in partial.iterdir()}
                    text = json.dumps({**facts, "files": files}, indent=2)
                    (partial / "checkpoint.json").write_text(text + "\n", encoding="utf-8")
            except (OSError, CheckpointException) as error:
                raise _cannot_write(folder, error) from error
        if is_first():
            _prune(self._out, keep=self._keep)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read what a checkpoint says of itself, and check all its bytes.

    Raises:
        ModelError: it is incomplete or its bytes are not those that were written.
    """
    fault = _fault(folder)
    if fault:
        raise ModelError(f"{folder} is not a usable checkpoint: {fault}; resume from an older one")
    facts = _facts(folder)
    return Checkpoint(
        folder=folder,
        position=Position(**facts["position"]),
        plan=facts["plan"],
        batches=facts["batches"],
        groups=facts["groups"],
    )


def find_latest(out: Path) -> Path | None:
    """Return the usable checkpoint with the most steps in `out`, or None."""
    for folder in reversed(_checkpoints(out)):
        fault = _fault(folder)
        if fault is None:
            return folder
        _log.warning("%s is passed over: %s", folder, fault)
    return None


def best_val_loss(out: Path) -> float | None:
    """Return the lowest validation loss that a checkpoint of `out` was saved with, or None."""
    losses = [_val_loss(folder) for folder in _checkpoints(out)]
    return min((loss for loss in losses if loss is not None), default=None)


def rewind_rows(path: Path, step: int) -> None:
    """Drop the rows of a JSON Lines file whose `step` is later: they will be made again."""
    if path.is_file():
        rows = [row for row in read_metrics(path) if row["step"] <= step]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with whole_file(path) as partial:
            partial.write_text(text, encoding="utf-8")


def _checkpoints(out: Path) -> list[Path]:
    """The checkpoint folders of `out`, fewest steps first."""
    if not out.is_dir():
        return []
    found = [(int(m[1]), p) for p in out.iterdir() if (m := _NAME.fullmatch(p.name))]
    return [path for _, path in sorted(found)]


def _prune(out: Path, *, keep: int) -> None:
    """Remove the checkpoints that are neither among the last nor the best, each at once."""
    best = best_val_loss(out)
    for folder in _checkpoints(out)[:-keep]:
        if best is None or _val_loss(folder) != best:
            hidden = folder.with_name(f".{folder.name}.old")
            shutil.rmtree(hidden, ignore_errors=True)
            folder.replace(hidden)
            shutil.rmtree(hidden)


def _remove_leftovers(out: Path) -> None:
    """Remove what a killed process was writing or removing."""
    if out.is_dir():
        for path in out.iterdir():
            if _LEFTOVER.fullmatch(path.name):
                shutil.rmtree(path)


def _facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))


def _val_loss(folder: Path) -> float | None:
    try:
        return Position(**_facts(folder)["position"]).val_loss
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not usable; `find_latest` says why


def _fault(folder: Path) -> str | None:
    """Say what is wrong with a checkpoint, or None."""
    try:
        facts = _facts(folder)
        Position(**facts["position"])
        for name, wanted in facts["files"].items():
            size = (folder / name).stat().st_size
            if size != wanted["bytes"]:
                return f"{name} has {size} bytes, not {wanted['bytes']}"
            if _fingerprint(folder / name) != wanted:
                return f"{name} has another SHA-256 than checkpoint.json says"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _cannot_write(folder: Path, error: OSError | CheckpointException) -> OutputError:
    cause: BaseException = error
    if isinstance(error, CheckpointException):
        cause, _ = next(iter(error.failures.values()))  # of the first rank that failed
    reason = cause.strerror if isinstance(cause, OSError) else str(cause)
    free_mb = shutil.disk_usage(folder.parent).free / 1e6
    return OutputError(
        f"cannot write {folder}: {reason} ({free_mb:.0f} MB free); free some space, then go on "
        "from the last checkpoint with --resume"
    )
