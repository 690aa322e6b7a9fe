"""The model: configuration, layers, attention, sampling, generation, and the model folder.

`import llmlab.model` loads nothing heavy: the names below are imported when they are first used.
Shapes: B batch, T new tokens, S tokens attended to, H query heads, G key/value heads, D head dim,
E hidden size, F feed-forward size, V vocabulary, N packed tokens in a serving step.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmlab.model.attention import Attend, causal
    from llmlab.model.build import build_model
    from llmlab.model.config import ModelConfig
    from llmlab.model.folder import load_config, load_model, load_weights, save_model
    from llmlab.model.generation import generate
    from llmlab.model.gguf_import import import_gguf
    from llmlab.model.gpt2 import GPT2
    from llmlab.model.hf_import import import_hf
    from llmlab.model.language_model import LanguageModel
    from llmlab.model.transformer import Transformer

_HOMES = {
    "GPT2": "llmlab.model.gpt2",
    "Attend": "llmlab.model.attention",
    "LanguageModel": "llmlab.model.language_model",
    "ModelConfig": "llmlab.model.config",
    "Transformer": "llmlab.model.transformer",
    "build_model": "llmlab.model.build",
    "causal": "llmlab.model.attention",
    "generate": "llmlab.model.generation",
    "import_gguf": "llmlab.model.gguf_import",
    "import_hf": "llmlab.model.hf_import",
    "load_config": "llmlab.model.folder",
    "load_model": "llmlab.model.folder",
    "load_weights": "llmlab.model.folder",
    "save_model": "llmlab.model.folder",
}

__all__ = [
    "GPT2",
    "Attend",
    "LanguageModel",
    "ModelConfig",
    "Transformer",
    "build_model",
    "causal",
    "generate",
    "import_gguf",
    "import_hf",
    "load_config",
    "load_model",
    "load_weights",
    "save_model",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'llmlab.model' has no attribute {name!r}")
