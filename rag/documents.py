"""What passes between the steps of retrieval: documents, their chunks, and hits.

Every offset counts characters (Unicode code points) of `Document.text`, the canonical text.
Not here: reading files (load.py), cutting (chunk.py), storage (store.py).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from llmlab.errors import RetrievalError


@dataclass(frozen=True, slots=True)
class Document:
    """One text and where it came from.

    Raises:
        RetrievalError: the text holds a lone surrogate, which no UTF-8 file can.
    """

    source: str
    """Unique name in an index, usually a path; its suffix tells how the text is structured."""

    text: str
    """Canonical text. For txt, md and py files it is `path.read_text(encoding="utf-8")`."""

    title: str = ""
    """For people; not searched."""

    page_starts: tuple[int, ...] = ()
    """Offset of each page's first character, for formats that have pages."""

    def __post_init__(self) -> None:
        try:
            self.text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RetrievalError(
                f"document {self.source!r} has a lone surrogate at offset {error.start}; "
                "decode it with errors='replace'"
            ) from error

    def page(self, offset: int) -> int | None:
        """Return the number of the page (from 1) that holds an offset, or None without pages."""
        return sum(start <= offset for start in self.page_starts) or None


@dataclass(frozen=True, slots=True)
class Chunk:
    """A passage: `document.text[start:end] == text`, exactly."""

    doc: str
    """`source` of the document."""

    start: int
    """Offset of the first character."""

    end: int
    """Offset after the last character."""

    text: str
    """The passage."""


@dataclass(frozen=True, slots=True)
class Hit(Chunk):
    """A chunk found for a question."""

    title: str = ""
    """Title of the document."""

    page: int | None = None
    """Page on which the chunk starts, from 1."""

    score: float = 0.0
    """What the hits are sorted by: the score of the mode that was asked for. Higher is better."""

    scores: Mapping[str, float] = field(default_factory=dict)
    """Raw components: `bm25`, `dense` (cosine) where that leg found the chunk, and `rrf`."""


def text_hash(text: str) -> bytes:
    """Return the SHA-256 of a text in UTF-8, 32 bytes."""
    return hashlib.sha256(text.encode("utf-8")).digest()
