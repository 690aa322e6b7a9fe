"""Where a run starts: at the beginning, or at the newest checkpoint in its folder.

Not here: what a checkpoint holds (checkpoint.py, snapshot.py).
"""

from pathlib import Path

from torch import optim

from llmlab.errors import ModelError, OutputError
from llmlab.model.language_model import LanguageModel
from llmlab.track import OnProgress
from llmlab.training.checkpoint import Checkpoint, find_latest, load_checkpoint, rewind_rows
from llmlab.training.distributed import on_first
from llmlab.training.hooks import BatchSource
from llmlab.training.plan import TrainingPlan


def find_start(out: Path, *, resume: bool) -> Checkpoint | None:
    """Return the checkpoint to go on from, None for a new run; every rank must call it.

    Args:
        out: folder of the run, created when missing.
        resume: whether there shall be one.

    Raises:
        ModelError: there is none to resume from.
        OutputError: there is one, and `resume` is false.
    """

    def find() -> Checkpoint | None:
        latest = find_latest(out)
        if resume and latest is None:
            raise ModelError(f"{out} has no usable checkpoint-N; start it without --resume")
        if latest is not None and not resume:
            raise OutputError(f"{latest} exists; add --resume, or choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        return load_checkpoint(latest) if latest is not None else None

    return on_first(find)


def go_to(
    checkpoint: Checkpoint,
    model: LanguageModel,
    optimizer: optim.Optimizer,
    batches: BatchSource,
    plan: TrainingPlan,
    on_progress: OnProgress,
) -> None:
    """Put model, optimizer, batches, random generators and metrics.jsonl where they were.

    Every rank must call it; another number of ranks may have written the checkpoint.

    Raises:
        ModelError: it belongs to another model or another optimizer.
        DataError: it belongs to other data.
    """
    used = checkpoint.plan.get("optimizer", plan.optimizer)
    if used != plan.optimizer:
        raise ModelError(
            f"{checkpoint.folder} holds the state of {used}, not of {plan.optimizer}; resume with "
            f"--optimizer {used}"
        )
    checkpoint.restore(model, optimizer)
    batches.load_state_dict(checkpoint.batches)
    log = checkpoint.folder.parent / "metrics.jsonl"
    on_first(lambda: rewind_rows(log, checkpoint.position.step))
    changes = "; ".join(plan.differences(checkpoint.plan))
    note = f"resuming from {checkpoint.folder}" + (f" with {changes}" if changes else "")
    on_progress({"note": note})
