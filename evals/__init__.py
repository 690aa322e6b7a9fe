"""A model folder or a URL in, numbers with error bars out.

`evaluate` runs tasks and writes a results folder; `FolderModel` and `UrlModel` answer the same
three calls, so a task does not know which one it scores. Importing this package loads nothing
heavy: the names below are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmlab.evals.folder_model import FolderModel
    from llmlab.evals.results import Results
    from llmlab.evals.run import evaluate
    from llmlab.evals.url_model import UrlModel

_HOMES = {
    "FolderModel": "llmlab.evals.folder_model",
    "Results": "llmlab.evals.results",
    "UrlModel": "llmlab.evals.url_model",
    "evaluate": "llmlab.evals.run",
}

__all__ = ["FolderModel", "Results", "UrlModel", "evaluate"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'llmlab.evals' has no attribute {name!r}")
