"""Models in other people's formats: GGUF.

Importing this package, and `llmlab.export.config`, does not import torch. Not here: what stands in
such a file and how it is read back (llmlab/model/gguf*.py).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmlab.export.config import ExportGgufConfig
    from llmlab.export.gguf import ExportResult, export_gguf

_HOMES = {
    "ExportGgufConfig": "llmlab.export.config",
    "ExportResult": "llmlab.export.gguf",
    "export_gguf": "llmlab.export.gguf",
}

__all__ = ["ExportGgufConfig", "ExportResult", "export_gguf"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'llmlab.export' has no attribute {name!r}")
