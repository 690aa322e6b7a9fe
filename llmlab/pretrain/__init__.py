"""Pretraining: from shards to a model folder.

`import llmlab.pretrain` loads no torch: `pretrain` is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llmlab.pretrain.config import PretrainConfig

if TYPE_CHECKING:
    from llmlab.pretrain.run import PretrainResult, pretrain

_HOMES = {"PretrainResult": "llmlab.pretrain.run", "pretrain": "llmlab.pretrain.run"}

__all__ = ["PretrainConfig", "PretrainResult", "pretrain"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'llmlab.pretrain' has no attribute {name!r}")
