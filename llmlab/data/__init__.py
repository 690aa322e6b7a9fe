"""From sources of text to batches of token ids.

`iter_documents` reads files, folders, built-in and hub data sets; `pack` turns them into a shards
folder; `Shards` and `Batches` read it back. Importing this package loads neither torch nor numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmlab.data.batch import Batch
    from llmlab.data.batches import Batches, val_batches
    from llmlab.data.config import PackConfig
    from llmlab.data.documents import Document, iter_documents
    from llmlab.data.packing import PackResult, pack
    from llmlab.data.shards import Shards
    from llmlab.data.stdlib import Docstring, stdlib_docstrings

_HOMES = {
    "Batch": "llmlab.data.batch",
    "Batches": "llmlab.data.batches",
    "Docstring": "llmlab.data.stdlib",
    "Document": "llmlab.data.documents",
    "PackConfig": "llmlab.data.config",
    "PackResult": "llmlab.data.packing",
    "Shards": "llmlab.data.shards",
    "iter_documents": "llmlab.data.documents",
    "pack": "llmlab.data.packing",
    "stdlib_docstrings": "llmlab.data.stdlib",
    "val_batches": "llmlab.data.batches",
}

__all__ = [
    "Batch",
    "Batches",
    "Docstring",
    "Document",
    "PackConfig",
    "PackResult",
    "Shards",
    "iter_documents",
    "pack",
    "stdlib_docstrings",
    "val_batches",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'llmlab.data' has no attribute {name!r}")
