"""BERT's normaliser: control characters, Chinese characters, accents, case.

All four work on one character at a time, except that decomposing may put marks in another order.
So a text is normalised by a table of characters, and step by step where two marks that stay stand
side by side. As `BertNormalizer` of Hugging Face `tokenizers`, which differs from the Python code
of the paper in a few characters (unicode_tables.py). Not here: how BERT cuts text (cuts.py).

Source: Devlin et al., arXiv:1810.04805.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from llmlab.tokenizers.alignment import Segment
from llmlab.tokenizers.unicode_forms import Lowercase, UnicodeForm, segments_by_run, starts_run
from llmlab.tokenizers.unicode_tables import (
    CHINESE,
    CLEANED_SPACES,
    DROPPED,
    MOVABLE,
    NONSPACING,
    CharacterClass,
)

_DROPPED = re.compile(f"[{DROPPED}]+")
_SPACE = re.compile(f"[{CLEANED_SPACES}]")
_CHINESE = re.compile(f"[{CHINESE}]")
_NONSPACING = re.compile(f"[{NONSPACING}]+")
_MOVABLE = CharacterClass(MOVABLE)
_TWO_MOVABLE = re.compile(f"[{MOVABLE}]{{2}}")
_BEYOND_ASCII = re.compile(r"([^\x00-\x7f]+)")

_NFD = UnicodeForm("NFD")
_LOWERCASE = Lowercase()


@dataclass(frozen=True)
class Bert:
    """Normalises as BERT does."""

    clean_text: bool = True
    """Drop control characters, make white space a space."""

    handle_chinese_chars: bool = True
    """Put a space on either side of a Chinese character."""

    strip_accents: bool | None = None
    """Decompose and drop nonspacing marks; None does so when `lowercase` is set."""

    lowercase: bool = True
    """Lower case, character by character."""

    def apply(self, text: str) -> str:
        """Return the normalised text."""
        table = _table(self)
        if text.isascii():
            return text.translate(table.ascii)
        parts = _BEYOND_ASCII.split(text)
        parts[::2] = [part.translate(table.ascii) for part in parts[::2]]
        parts[1::2] = ["".join(map(table.__getitem__, part)) for part in parts[1::2]]
        normal = "".join(parts)
        moves = _MOVABLE.is_in(normal) and _TWO_MOVABLE.search(normal)
        return self.step_by_step(text) if moves else normal

    def step_by_step(self, text: str) -> str:
        """Return the normalised text; the definition of `apply`."""
        text = self._cleaned(text)
        if self._strips:
            text = _NONSPACING.sub("", _NFD.apply(text))
        return _LOWERCASE.apply(text) if self.lowercase else text

    def segments(self, text: str) -> Iterator[Segment]:
        """Yield what each stretch of the text becomes, most of them one character long."""
        return segments_by_run(text, self._starts_run, self.apply, _table(self).__getitem__)

    @property
    def component(self) -> dict[str, Any]:
        """Its entry in tokenizer.json."""
        return {
            "type": "BertNormalizer",
            "clean_text": self.clean_text,
            "handle_chinese_chars": self.handle_chinese_chars,
            "strip_accents": self.strip_accents,
            "lowercase": self.lowercase,
        }

    @property
    def _strips(self) -> bool:
        return self.lowercase if self.strip_accents is None else self.strip_accents

    def _cleaned(self, text: str) -> str:
        if self.clean_text:
            text = _SPACE.sub(" ", _DROPPED.sub("", text))
        return _CHINESE.sub(r" \g<0> ", text) if self.handle_chinese_chars else text

    def _starts_run(self, char: str) -> bool:
        if not self._strips:
            return True
        cleaned = self._cleaned(char)
        return bool(cleaned) and starts_run(cleaned[0], "NFD")


class _Table(dict[str, str]):
    """What each character becomes; it fills as characters come, at most one entry for each."""

    def __init__(self, bert: Bert) -> None:
        super().__init__()
        self._bert = bert
        self.ascii = {point: self[chr(point)] for point in range(128)}
        """Code point to text, for `str.translate`."""

    def __missing__(self, char: str) -> str:
        normal = self[char] = self._bert.step_by_step(char)
        return normal


@lru_cache(maxsize=16)
def _table(bert: Bert) -> _Table:
    return _Table(bert)
