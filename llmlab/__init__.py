"""llmlab: the whole life of a small language model, one readable library.

`import llmlab` loads nothing heavy: the names below are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmlab.errors import LabError
    from llmlab.model import ModelConfig, Transformer, generate, load_model, save_model
    from llmlab.tokenizers import Tokenizer

__version__ = "0.1.0"

_HOMES = {
    "LabError": "llmlab.errors",
    "ModelConfig": "llmlab.model",
    "Tokenizer": "llmlab.tokenizers",
    "Transformer": "llmlab.model",
    "generate": "llmlab.model",
    "load_model": "llmlab.model",
    "save_model": "llmlab.model",
}

__all__ = [
    "LabError",
    "ModelConfig",
    "Tokenizer",
    "Transformer",
    "generate",
    "load_model",
    "save_model",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'llmlab' has no attribute {name!r}")
