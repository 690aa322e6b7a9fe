"""What an answer is made of, and the events of one that streams in.

Not here: how citations are checked (citations.py), how the text is made (pipeline.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from llmlab.rag.documents import Hit


@dataclass(frozen=True, slots=True)
class Citation:
    """A place in a document that supports one sentence of an answer.

    `index.document(citation.doc).text[citation.start:citation.end] == citation.quote`, always.
    """

    marker: int
    """Number of the source as the model saw it, from 1; `hits[marker - 1]` holds the quote."""

    doc: str
    """`source` of the document."""

    start: int
    """Offset of the quote's first character in the document."""

    end: int
    """Offset after the quote's last character."""

    quote: str
    """The words of the document."""

    claim: str
    """The sentence of the answer that the quote supports, without markers."""

    origin: Literal["model", "attributed"]
    """`model`: the model wrote `[marker]` there. `attributed`: it did not, the quote was found."""

    support: float
    """How much of the claim the quote holds: 1 for all of its words, see citations.py."""

    page: int | None = None
    """Page of the quote, from 1, where the document has pages."""


@dataclass(frozen=True, slots=True)
class Sources:
    """First event of a streamed answer: the passages shown to the model, in marker order."""

    hits: tuple[Hit, ...]


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next piece of the answer's text, as the model writes it."""

    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer; the last event of a streamed one."""

    text: str
    """What the model said, unchanged."""

    citations: tuple[Citation, ...]
    """Only places that were found in the sources; an invented or unfitting marker has none."""

    unsupported: tuple[str, ...]
    """Sentences of the answer for which no source speaks."""

    hits: tuple[Hit, ...]
    """The passages shown to the model; `hits[n - 1]` is source [n]."""

    timings: Mapping[str, float]
    """Seconds: `search_s`, `first_text_s` (from the request), `generate_s`, `check_s`."""

    @property
    def grounded(self) -> bool:
        """True when something is cited and no sentence lacks support."""
        return bool(self.citations) and not self.unsupported
