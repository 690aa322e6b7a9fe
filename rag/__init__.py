"""Documents in, cited answers out.

`Index` finds passages in files, `Pipeline` asks any OpenAI-style server and checks what it cites.
Importing this package loads nothing heavy: the names below are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmlab.rag.answer import Answer, Citation, Sources, TextDelta
    from llmlab.rag.documents import Document, Hit
    from llmlab.rag.embed import load_embedder
    from llmlab.rag.embedder import Embedder
    from llmlab.rag.index import Index, IndexReport
    from llmlab.rag.load import load_file
    from llmlab.rag.pipeline import Pipeline

_HOMES = {
    "Answer": "llmlab.rag.answer",
    "Citation": "llmlab.rag.answer",
    "Document": "llmlab.rag.documents",
    "Embedder": "llmlab.rag.embedder",
    "Hit": "llmlab.rag.documents",
    "Index": "llmlab.rag.index",
    "IndexReport": "llmlab.rag.index",
    "Pipeline": "llmlab.rag.pipeline",
    "Sources": "llmlab.rag.answer",
    "TextDelta": "llmlab.rag.answer",
    "load_embedder": "llmlab.rag.embed",
    "load_file": "llmlab.rag.load",
}

__all__ = [
    "Answer",
    "Citation",
    "Document",
    "Embedder",
    "Hit",
    "Index",
    "IndexReport",
    "Pipeline",
    "Sources",
    "TextDelta",
    "load_embedder",
    "load_file",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'llmlab.rag' has no attribute {name!r}")
