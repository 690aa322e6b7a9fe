"""The one training loop, its plan, optimizer and checkpoints.

`llmlab.training.plan` and `llmlab.training.schedule` load no torch; the names below that need it
are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llmlab.training.plan import TrainingPlan

if TYPE_CHECKING:
    from llmlab.training.checkpoint import CheckpointWriter, find_latest, load_checkpoint
    from llmlab.training.hooks import BatchSource, Hooks, TrainState
    from llmlab.training.loop import train
    from llmlab.training.optimizer import build_optimizer

_HOMES = {
    "BatchSource": "llmlab.training.hooks",
    "CheckpointWriter": "llmlab.training.checkpoint",
    "Hooks": "llmlab.training.hooks",
    "TrainState": "llmlab.training.hooks",
    "build_optimizer": "llmlab.training.optimizer",
    "find_latest": "llmlab.training.checkpoint",
    "load_checkpoint": "llmlab.training.checkpoint",
    "train": "llmlab.training.loop",
}

__all__ = [
    "BatchSource",
    "CheckpointWriter",
    "Hooks",
    "TrainState",
    "TrainingPlan",
    "build_optimizer",
    "find_latest",
    "load_checkpoint",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'llmlab.training' has no attribute {name!r}")
