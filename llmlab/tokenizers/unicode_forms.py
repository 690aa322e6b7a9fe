"""Normalisers of Unicode: canonical and compatibility forms, lower case, marks.

Each does what the component of that name in Hugging Face `tokenizers` does, whose tables are older
than Python's in part (unicode_tables.py). A normaliser has `apply`, the fast way, and `segments`,
which says for every stretch of the text what became of it (alignment.py). Not here: BERT's
normaliser (bert.py), edits that know no Unicode (normalizers.py).

Source: Unicode Standard Annex 15.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal

from llmlab.tokenizers.alignment import Segment
from llmlab.tokenizers.unicode_tables import (
    JOINED,
    LOWERED,
    MARKS,
    YOUNG,
    CharacterClass,
)

Form = Literal["NFC", "NFD", "NFKC", "NFKD"]

_PLAIN_FIRST = re.compile(r"[\t\n\r -~]+(?![^\t\n\r -~])|[\s\S][^\t\n\r -~]*")
"""ASCII that no mark follows, or one character and all after it that is not ASCII or may be
dropped, so that its neighbours meet."""

_YOUNG = CharacterClass(YOUNG)
_YOUNG_RUNS = re.compile(f"([{YOUNG}]+)")
_STRIPPED = CharacterClass(MARKS)
_CAPITALS = CharacterClass("".join(rf"\U{ord(char):08x}" for char in LOWERED))
_JOINED = re.compile(f"[{JOINED}]")
_MARKS = re.compile(f"[{MARKS}]+")
_MAX_REMEMBERED = 2**14
"""Characters whose place in a run is remembered."""


@dataclass(frozen=True)
class UnicodeForm:
    """Brings text into a Unicode form."""

    form: Form

    def apply(self, text: str) -> str:
        """Return the text in this form."""
        normal = unicodedata.normalize(self.form, text)
        if normal == text or not _YOUNG.is_in(text):
            return normal
        parts = _YOUNG_RUNS.split(text)  # what is young stays, and keeps its neighbours apart
        parts[::2] = [unicodedata.normalize(self.form, part) for part in parts[::2]]
        return "".join(parts)

    def segments(self, text: str) -> Iterator[Segment]:
        """Yield what each stretch of the text becomes."""
        return segments_by_run(
            text, lambda char: starts_run(char, self.form), self.apply, self.apply
        )

    @property
    def component(self) -> dict[str, Any]:
        """Its entry in tokenizer.json."""
        return {"type": self.form}


@dataclass(frozen=True)
class Lowercase:
    """Lower case, character by character: a final sigma is a sigma like any other."""

    def apply(self, text: str) -> str:
        """Return the text in lower case."""
        if text.isascii():
            return text.lower()
        lowered = text.replace("Σ", "σ").lower()  # else the end of a word would get ς
        if _CAPITALS.is_in(lowered):
            return "".join(LOWERED.get(char, char) for char in lowered)
        return lowered

    def segments(self, text: str) -> Iterator[Segment]:
        """Yield what each character becomes."""
        return ((1, self.apply(char)) for char in text)

    @property
    def component(self) -> dict[str, Any]:
        """Its entry in tokenizer.json."""
        return {"type": "Lowercase"}


@dataclass(frozen=True)
class StripAccents:
    """Drops marks; accents that are part of a letter stay unless NFD or NFKD comes before."""

    def apply(self, text: str) -> str:
        """Return the text without marks."""
        return text if text.isascii() else _STRIPPED.drop(text)

    def segments(self, text: str) -> Iterator[Segment]:
        """Yield what each stretch of the text becomes."""
        at = 0
        for match in _MARKS.finditer(text):
            yield match.start() - at, text[at : match.start()]
            yield len(match[0]), ""
            at = match.end()
        yield len(text) - at, text[at:]

    @property
    def component(self) -> dict[str, Any]:
        """Its entry in tokenizer.json."""
        return {"type": "StripAccents"}


@lru_cache(maxsize=_MAX_REMEMBERED)
def starts_run(char: str, form: Form) -> bool:
    """Return whether nothing before a character can change what it becomes in a form."""
    if _YOUNG.is_in(char):
        return True
    decomposed: Form = "NFKD" if "K" in form else "NFD"
    first = unicodedata.normalize(decomposed, char)[0]
    return not unicodedata.combining(first) and not _JOINED.match(first)


def segments_by_run(
    text: str,
    starts: Callable[[str], bool],
    apply: Callable[[str], str],
    apply_to_char: Callable[[str], str],
) -> Iterator[Segment]:
    """Yield the segments of a normaliser that changes runs of characters.

    Args:
        text: what is normalised.
        starts: whether a run starts at a character, whatever stands before it; true
            of printing ASCII.
        apply: the normaliser; what it makes of a text is what it makes of the runs, joined.
        apply_to_char: the same for one character.
    """
    for match in _PLAIN_FIRST.finditer(text):
        stretch = match[0]
        if stretch.isascii():
            yield from ((1, apply_to_char(char)) for char in stretch)
            continue
        edges = [at for at, char in enumerate(stretch) if not at or starts(char)]
        for first, last in pairwise([*edges, len(stretch)]):
            if last - first == 1:
                yield 1, apply_to_char(stretch[first])
            else:
                yield from _segments_of_run(stretch[first:last], apply, apply_to_char)


def _segments_of_run(
    run: str, apply: Callable[[str], str], apply_to_char: Callable[[str], str]
) -> Iterator[Segment]:
    """Yield characters that change on their own, at both ends, and the rest as one segment."""
    normal = apply(run)
    alone = [apply_to_char(char) for char in run]
    first, left = 0, 0
    while first < len(run) and normal.startswith(alone[first], left):
        yield 1, alone[first]
        left += len(alone[first])
        first += 1
    last, right = len(run), len(normal)
    while last > first and normal.endswith(alone[last - 1], left, right):
        last -= 1
        right -= len(alone[last])
    if last > first:
        yield last - first, normal[left:right]
    yield from ((1, single) for single in alone[last:])
