"""checkpoint-N folders: everything a run needs to go on as if it had never stopped.

Each holds `state.pt` (trainable parameters, optimizer, batch source, random generators; loadable
with `weights_only=True`, so it can run no code) and `checkpoint.json` (step, tokens, seconds, the
plan, the size and SHA-256 of state.pt). A checkpoint appears whole or not at all, and one whose
bytes changed afterwards is passed over.

Not here: model folders for other programs (llmlab/model). Frozen parameters and buffers are not
stored: they are those of the model that training started from.
"""

import dataclasses
import hashlib
import json
import logging
import pickle
import random
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn, optim

from llmlab.errors import ModelError, OutputError
from llmlab.outputs import whole_file, whole_folder
from llmlab.track import read_metrics
from llmlab.training.optimizer import trainable_parameters
from llmlab.training.plan import TrainingPlan

_log = logging.getLogger(__name__)
_NAME = re.compile(r"checkpoint-(\d+)")


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

    spikes: dict[str, Any] = dataclasses.field(default_factory=dict)
    """State of the guard against loss spikes."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One loaded checkpoint; `restore` puts it into a model and an optimizer."""

    folder: Path
    position: Position
    plan: dict[str, Any]
    """The fields of the TrainingPlan the run was using."""

    parameters: dict[str, Tensor]
    optimizer: dict[str, Any]
    batches: dict[str, Any]
    """State of the batch source."""

    generators: dict[str, Any]

    def restore(self, model: nn.Module, optimizer: optim.Optimizer) -> None:
        """Copy parameters, optimizer state and random generators back.

        Raises:
            ModelError: the parameters are not those of `model`.
        """
        mine = {name: tuple(p.shape) for name, p in trainable_parameters(model).items()}
        theirs = {name: tuple(p.shape) for name, p in self.parameters.items()}
        if mine != theirs:
            name = next(n for n in [*mine, *theirs] if mine.get(n) != theirs.get(n))
            raise ModelError(
                f"{self.folder}: parameter {name} is {theirs.get(name)} in the checkpoint and "
                f"{mine.get(name)} in the model; resume with the model settings the run began with"
            )
        with torch.no_grad():
            for name, parameter in trainable_parameters(model).items():
                parameter.copy_(self.parameters[name])
        optimizer.load_state_dict(self.optimizer)
        _set_generators(self.generators)


def save_checkpoint(
    out: Path,
    *,
    model: nn.Module,
    optimizer: optim.Optimizer,
    batches: dict[str, Any],
    position: Position,
    plan: TrainingPlan,
) -> Path:
    """Write `out/checkpoint-N`, then remove the oldest ones beyond `plan.keep_checkpoints`.

    Args:
        out: folder of the run.
        model: its trainable parameters are stored.
        optimizer: its whole state is stored.
        batches: state of the batch source: numbers, strings, lists, dicts, tensors.
        position: steps, tokens and seconds so far.
        plan: stored beside them.

    Returns:
        The new folder.

    Raises:
        OutputError: it cannot be written; older checkpoints are untouched.
    """
    folder = out / f"checkpoint-{position.step}"
    state = {
        "parameters": {name: p.detach() for name, p in trainable_parameters(model).items()},
        "optimizer": optimizer.state_dict(),
        "batches": batches,
        "generators": _get_generators(),
    }
    with whole_folder(folder, overwrite=True) as partial:
        try:
            with (partial / "state.pt").open("wb") as file:
                torch.save(state, file)
            facts = {
                "position": dataclasses.asdict(position),
                "plan": dataclasses.asdict(plan),
                "state_bytes": (partial / "state.pt").stat().st_size,
                "state_sha256": _sha256(partial / "state.pt"),
            }
            (partial / "checkpoint.json").write_text(json.dumps(facts, indent=2) + "\n")
        except (
            OSError,
            RuntimeError,
        ) as error:  # torch's zip writer reports a full disk as RuntimeError
            raise _cannot_write(folder, error) from error
    _prune(out, keep=plan.keep_checkpoints)
    return folder


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Raises:
        ModelError: it is incomplete or its bytes are not those that were written.
    """
    fault = _fault(folder)
    if fault:
        raise ModelError(f"{folder} is not a usable checkpoint: {fault}; resume from an older one")
    facts = json.loads((folder / "checkpoint.json").read_text())
    try:
        state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{folder / 'state.pt'} holds more than tensors and plain values, so it is not loaded; "
            "resume from a checkpoint that llmlab wrote"
        ) from error
    return Checkpoint(
        folder=folder, position=Position(**facts["position"]), plan=facts["plan"], **state
    )


def find_latest(out: Path) -> Path | None:
    """Return the usable checkpoint with the most steps in `out`, or None."""
    for folder in reversed(_checkpoints(out)):
        fault = _fault(folder)
        if fault is None:
            return folder
        _log.warning("%s is passed over: %s", folder, fault)
    return None


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
    for folder in _checkpoints(out)[:-keep]:
        shutil.rmtree(folder)


def _fault(folder: Path) -> str | None:
    """Say what is wrong with a checkpoint, or None."""
    state = folder / "state.pt"
    try:
        facts = json.loads((folder / "checkpoint.json").read_text())
        wanted_bytes, wanted_hash = facts["state_bytes"], facts["state_sha256"]
        Position(**facts["position"])
        if state.stat().st_size != wanted_bytes:
            return f"state.pt has {state.stat().st_size} bytes, not {wanted_bytes}"
        if _sha256(state) != wanted_hash:
            return "state.pt has another SHA-256 than checkpoint.json says"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cannot_write(folder: Path, error: Exception) -> OutputError:
    # torch's zip writer wraps what a full disk raised into a RuntimeError of its own.
    cause = error if isinstance(error, OSError) else error.__context__
    reason = cause.strerror if isinstance(cause, OSError) else str(error)
    free_mb = shutil.disk_usage(folder.parent).free / 1e6
    return OutputError(
        f"cannot write {folder}: {reason} ({free_mb:.0f} MB free); free some space, then go on "
        "from the last checkpoint with --resume"
    )


def _get_generators() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda, "python": random.getstate()}


def _set_generators(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    random.setstate(states["python"])
