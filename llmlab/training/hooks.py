"""What the training loop is given and what it gives back.

Not here: the loop (loop.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from llmlab.data.batch import Batch
from llmlab.track import OnProgress, Tracker, silent


class BatchSource(Protocol):
    """Where batches come from; `llmlab.data.Batches` is one."""

    def next(self) -> Batch:
        """Return the next batch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the data as JSON holds it, the same on every rank."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a place that `state_dict` returned."""
        ...


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What to call on the way.

    Inside `evaluate` and `sample` the model is in eval mode and keeps no gradients; random
    generators are put back afterwards, so that neither changes the run. `evaluate` runs under the
    run's autocast, `sample` in the dtype of the weights. Under torchrun each rank has all weights
    then; every rank calls `evaluate`, so that they can share the work, and only rank 0 the rest.
    """

    on_progress: OnProgress = silent
    """Gets the numbers of each logged step, and notes; a note of an evaluation has its row too."""

    trackers: tuple[Tracker, ...] = ()
    """Get the rows of metrics.jsonl as well."""

    evaluate: Callable[[int], Mapping[str, float]] | None = None
    """`evaluate(step)` after every `plan.eval_every` steps and the last; the row of rank 0 goes to
    metrics.jsonl with `step` added. The checkpoint with the lowest `val_loss` in it is kept."""

    sample: Callable[[int], None] | None = None
    """`sample(step)` after every `plan.sample_every` steps and the last."""


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """How a call of `train` ended."""

    status: Literal["finished", "interrupted"]
    """interrupted: a SIGINT or SIGTERM came; the step was finished and a checkpoint saved."""

    step: int
    """Optimizer steps made, those before a resume included."""

    tokens: int
    """Tokens put through the model."""

    elapsed_s: float
    """Seconds inside `train`."""

    loss: float
    """Loss of the last step in nats a token; nan when this call made none."""

    dtype: str
    """Compute dtype, `float32` or `bfloat16`."""

    checkpoint: Path
    """The last checkpoint."""
