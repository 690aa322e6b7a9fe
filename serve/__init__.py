"""A model folder behind the OpenAI HTTP API, on an engine with paged, batched decoding.

Importing this package loads nothing heavy: the names below are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmlab.serve.async_engine import AsyncEngine
    from llmlab.serve.config import ServeConfig
    from llmlab.serve.engine import Engine
    from llmlab.serve.params import EngineConfig, SamplingParams
    from llmlab.serve.server import running_server

_HOMES = {
    "AsyncEngine": "llmlab.serve.async_engine",
    "Engine": "llmlab.serve.engine",
    "EngineConfig": "llmlab.serve.params",
    "SamplingParams": "llmlab.serve.params",
    "ServeConfig": "llmlab.serve.config",
    "running_server": "llmlab.serve.server",
}

__all__ = [
    "AsyncEngine",
    "Engine",
    "EngineConfig",
    "SamplingParams",
    "ServeConfig",
    "running_server",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'llmlab.serve' has no attribute {name!r}")
