r"""Ways to cut text for vocabularies of characters: WordPiece, word level, character level.

Each has a name, one regular expression whose matches are the pieces, and its component in
tokenizer.json. Text between matches is dropped. Not here: the splits of byte-level vocabularies,
which drop nothing and have names in GGUF (splits.py).
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import regex

from llmlab.errors import UnsupportedPart
from llmlab.tokenizers.unicode_tables import PUNCTUATION, SPACES, low_and_high


@dataclass(frozen=True)
class Cut:
    """One way to cut text."""

    name: str
    expression: str
    """Its matches are the pieces."""

    component: dict[str, Any] | None
    """`pre_tokenizer` of tokenizer.json; None leaves the text whole."""

    @cached_property
    def pattern(self) -> re.Pattern[str] | regex.Pattern[str]:
        """The compiled expression: `re` is the faster one, and knows no properties of Unicode."""
        engine = regex if r"\p" in self.expression or r"\w" in self.expression else re
        return engine.compile(self.expression)

    def pieces(self, text: str) -> list[str]:
        """Return the pieces of a text."""
        return list(text) if self.expression == _CHARS else self.pattern.findall(text)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return start and end of each piece, in characters."""
        return [match.span() for match in self.pattern.finditer(text)]


def _isolated(expression: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": expression},
        "behavior": "Isolated",
        "invert": False,
    }


def _bert() -> str:
    low, high = low_and_high(PUNCTUATION)
    above = r"\U00010000-\U0010ffff"  # one range: `re` goes through many for every character
    word = rf"[^{SPACES}{low}{above}]+|(?=[{above}])[^{high}]"
    return rf"(?:{word})+|[{low}]|(?=[{above}])[{high}]"


# General categories mean the same in every engine of regular expressions; `\w` does not.
_WORD = r"\p{L}\p{M}\p{N}_"
_WORDS = rf"[{_WORD}]+|[^{_WORD}\s]+|\s+"
_CHARS = r"[\s\S]"
_MARK_RUNS = "\u2581+[^\u2581]*|[^\u2581]+"

CUTS: dict[str, Cut] = {
    cut.name: cut
    for cut in (
        Cut(  # white space is dropped, a punctuation character is a piece
            "bert", _bert(), {"type": "BertPreTokenizer"}
        ),
        Cut("words", _WORDS, _isolated(_WORDS)),  # words, other characters, white space
        Cut("whole", r"[\s\S]+", None),  # the text as one piece
        Cut("chars", _CHARS, _isolated(_CHARS)),
        Cut(  # SentencePiece's words, each with the mark of the space before it
            "marks",
            "\u2581[^\u2581]*|[^\u2581]+",
            {
                "type": "Split",
                "pattern": {"String": "\u2581"},
                "behavior": "MergedWithNext",
                "invert": False,
            },
        ),
        Cut("mark_runs", _MARK_RUNS, _isolated(_MARK_RUNS)),  # each with all marks before it
        Cut("whitespace", rf"\w+|[^\w{SPACES}]+", {"type": "Whitespace"}),
        Cut("whitespace_split", f"[^{SPACES}]+", {"type": "WhitespaceSplit"}),
    )
}


def cut_of_component(component: dict[str, Any] | None) -> Cut:
    """Return the cut that a `pre_tokenizer` of tokenizer.json describes.

    Raises:
        UnsupportedPart: it is none of these.
    """
    for cut in CUTS.values():
        if component == cut.component:
            return cut
    kind = (component or {}).get("type")
    raise UnsupportedPart(f"pre_tokenizer {kind} is not supported yet")
