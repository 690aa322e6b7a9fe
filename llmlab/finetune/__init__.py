"""Adapt a model to chats: LoRA or full finetuning, adapter files, merging.

Importing this package, and `llmlab.finetune.config`, does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmlab.finetune.adapter import load_adapter, save_adapter
    from llmlab.finetune.config import FinetuneConfig, LoraConfig, MergeConfig
    from llmlab.finetune.lora import add_lora, merge_lora
    from llmlab.finetune.merging import merge
    from llmlab.finetune.run import FinetuneResult, finetune
    from llmlab.model.adapter_folder import base_fingerprint

_HOMES = {
    "FinetuneConfig": "llmlab.finetune.config",
    "FinetuneResult": "llmlab.finetune.run",
    "LoraConfig": "llmlab.finetune.config",
    "MergeConfig": "llmlab.finetune.config",
    "add_lora": "llmlab.finetune.lora",
    "base_fingerprint": "llmlab.model.adapter_folder",
    "finetune": "llmlab.finetune.run",
    "load_adapter": "llmlab.finetune.adapter",
    "merge": "llmlab.finetune.merging",
    "merge_lora": "llmlab.finetune.lora",
    "save_adapter": "llmlab.finetune.adapter",
}

__all__ = [
    "FinetuneConfig",
    "FinetuneResult",
    "LoraConfig",
    "MergeConfig",
    "add_lora",
    "base_fingerprint",
    "finetune",
    "load_adapter",
    "merge",
    "merge_lora",
    "save_adapter",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'llmlab.finetune' has no attribute {name!r}")
