"""What is done to text before it is cut: a sequence of normalisers, and where their text is from.

Simple edits stand here; Unicode forms, case and marks in unicode_forms.py, BERT's in bert.py. Each
has `apply(text)`, `segments(text)` and `component`, its entry in tokenizer.json, and does what the
component of that name in Hugging Face `tokenizers` does, character for character. Not here: cutting
(cuts.py, splits.py).
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import regex

from llmlab.errors import UnsupportedPart
from llmlab.tokenizers.alignment import Alignment, Segment
from llmlab.tokenizers.bert import Bert
from llmlab.tokenizers.sentencepiece_rules import KEY, SentencePieceRules
from llmlab.tokenizers.unicode_forms import Lowercase, StripAccents, UnicodeForm
from llmlab.tokenizers.unicode_tables import SPACES

_SPACES = "".join(re.findall(f"[{SPACES}]", "".join(map(chr, range(0x3001)))))


class Normalizer(Protocol):
    """One step."""

    def apply(self, text: str) -> str:
        """Return the normalised text."""
        ...

    def segments(self, text: str) -> Iterator[Segment]:
        """Yield (characters, what they became), side by side; joined it is `apply(text)`."""
        ...

    @property
    def component(self) -> dict[str, Any]:
        """Its entry in tokenizer.json."""
        ...


@dataclass(frozen=True)
class Prepend:
    """Puts text in front, unless there is nothing to put it in front of."""

    text: str

    def apply(self, text: str) -> str:
        """Return the text with the other in front."""
        return self.text + text if text else text

    def segments(self, text: str) -> Iterator[Segment]:
        """Yield the first character as what both become, and the rest as it is."""
        if text:
            yield 1, self.text + text[0]
            yield len(text) - 1, text[1:]

    @property
    def component(self) -> dict[str, Any]:
        """Its entry in tokenizer.json."""
        return {"type": "Prepend", "prepend": self.text}


@dataclass(frozen=True)
class Replace:
    """Replaces every occurrence of a text, or of runs of it."""

    old: str
    new: str
    is_expression: bool = False
    """Whether `old` is a regular expression, one of EXPRESSIONS."""

    def apply(self, text: str) -> str:
        """Return the text with all occurrences replaced."""
        if self.is_expression:
            return regex.sub(self.old, lambda match: self.new, text)
        return text.replace(self.old, self.new)

    def segments(self, text: str) -> Iterator[Segment]:
        """Yield each occurrence, and what is between as it is."""
        at = 0
        expression = self.old if self.is_expression else regex.escape(self.old)
        for match in regex.finditer(expression, text):
            yield match.start() - at, text[at : match.start()]
            yield len(match[0]), self.new
            at = match.end()
        yield len(text) - at, text[at:]

    @property
    def component(self) -> dict[str, Any]:
        """Its entry in tokenizer.json."""
        pattern = {"Regex" if self.is_expression else "String": self.old}
        return {"type": "Replace", "pattern": pattern, "content": self.new}


EXPRESSIONS = (" {2,}", " +", r"\s+", r"\s{2,}", r"\n+", r"\n{2,}")
"""Expressions that mean the same in every engine; other ones are not read."""


@dataclass(frozen=True)
class Strip:
    """Drops white space at the ends."""

    left: bool = True
    right: bool = True

    def apply(self, text: str) -> str:
        """Return the text without the white space."""
        text = text.lstrip(_SPACES) if self.left else text
        return text.rstrip(_SPACES) if self.right else text

    def segments(self, text: str) -> Iterator[Segment]:
        """Yield the white space as nothing, and what is between as it is."""
        kept = self.apply(text)
        before = len(text) - len(text.lstrip(_SPACES)) if self.left else 0
        yield before, ""
        yield len(kept), kept
        yield len(text) - before - len(kept), ""

    @property
    def component(self) -> dict[str, Any]:
        """Its entry in tokenizer.json."""
        return {"type": "Strip", "strip_left": self.left, "strip_right": self.right}


def normalized(steps: Sequence[Normalizer], text: str) -> str:
    """Return what the steps make of a text, one after the other."""
    for step in steps:
        text = step.apply(text)
    return text


def aligned(steps: Sequence[Normalizer], text: str) -> Alignment:
    """Return what the steps make of a text, and where each of its characters comes from."""
    alignment = Alignment.identity(text)
    for step in steps:
        if step.apply(alignment.text) != alignment.text:
            alignment = alignment.then(step.segments(alignment.text))
    return alignment


def normalizer_steps(component: dict[str, Any] | None) -> tuple[Normalizer, ...]:
    """Return the steps that a `normalizer` of tokenizer.json describes.

    Raises:
        UnsupportedPart: one of them is none of ours; the message names it.
    """
    if component is None:
        return ()
    if KEY in component:
        return (SentencePieceRules.of_component(component),)
    if component["type"] == "Sequence":
        return tuple(step for part in component["normalizers"] for step in normalizer_steps(part))
    if component["type"] not in _READERS:
        raise UnsupportedPart(f"normalizer {component['type']} is not supported yet")
    return (_READERS[component["type"]](component),)


def normalizer_component(steps: Sequence[Normalizer]) -> dict[str, Any] | None:
    """Return `normalizer` of tokenizer.json."""
    if len(steps) == 1:
        return steps[0].component
    parts = [step.component for step in steps]
    return {"type": "Sequence", "normalizers": parts} if parts else None


def _read_replace(component: dict[str, Any]) -> Replace:
    pattern, new = component["pattern"], component["content"]
    if pattern.get("String"):
        return Replace(pattern["String"], new)
    if pattern.get("Regex") in EXPRESSIONS:
        return Replace(pattern["Regex"], new, is_expression=True)
    raise UnsupportedPart(f"normalizer Replace with pattern {pattern} is not supported yet")


def _read_bert(component: dict[str, Any]) -> Bert:
    return Bert(
        component["clean_text"],
        component["handle_chinese_chars"],
        component.get("strip_accents"),
        component["lowercase"],
    )


_READERS: dict[str, Callable[[dict[str, Any]], Normalizer]] = {
    "NFC": lambda component: UnicodeForm("NFC"),
    "NFD": lambda component: UnicodeForm("NFD"),
    "NFKC": lambda component: UnicodeForm("NFKC"),
    "NFKD": lambda component: UnicodeForm("NFKD"),
    "Lowercase": lambda component: Lowercase(),
    "StripAccents": lambda component: StripAccents(),
    "BertNormalizer": _read_bert,
    "Prepend": lambda component: Prepend(component["prepend"]),
    "Replace": _read_replace,
    "Strip": lambda component: Strip(component["strip_left"], component["strip_right"]),
}
