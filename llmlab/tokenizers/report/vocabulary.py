"""The tokens of a vocabulary: which kinds there are, how long they are, which ones a text uses."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmlab.tokenizers import Tokenizer
from llmlab.tokenizers.report.visible import is_text, visible

TOP = 25
"""Tokens in a list of the longest or the most frequent."""

MAX_LEN = 16
"""Token lengths from here on are counted together."""

_SHOWN_CHARS = 60
_RUN = re.compile(r"(.)\1{7,}")


@dataclass(frozen=True)
class TokenCount:
    """A token and how often the text uses it."""

    id: int
    text: str
    """As people can read it (visible.py); a long run of one character is cut to its length."""

    hex: str
    """Its bytes, two digits each."""

    num_bytes: int
    count: int
    share: float
    """Of the tokens of the text."""


@dataclass(frozen=True)
class Group:
    """Tokens that have something in common."""

    name: str
    tokens: int
    """How many of the vocabulary there are."""

    used: int
    """How many of them the text uses."""

    share: float
    """Of the tokens of the text."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """A vocabulary and the use a text makes of it. Special tokens are left out of all but kinds."""

    tokens: int
    """Ids that stand for something."""

    used: int
    """How many of them the text uses."""

    never_used: tuple[TokenCount, ...]
    """The first ones the text does not use, in the order of the ids."""

    longest: tuple[TokenCount, ...]
    """Without runs of one character, which fill the list where text is indented."""

    frequent: tuple[TokenCount, ...]
    deciles: tuple[Group, ...]
    """Ten groups of equal size in the order of the ids, which is the order of merges in BPE."""

    lengths: tuple[Group, ...]
    """By bytes; the last group holds all longer ones."""

    kinds: tuple[Group, ...]
    """Special, one character, word, several words and so on (`kind_of`)."""


def read_vocabulary(tokenizer: Tokenizer, counts: NDArray[np.int64]) -> Vocabulary:
    """Describe a vocabulary.

    Args:
        tokenizer: whose vocabulary.
        counts: (V,) how often the text uses each id.
    """
    spelled = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
    special = frozenset(tokenizer.special_tokens.values())
    ordinary = [i for i, data in enumerate(spelled) if data and i not in special]
    total = max(int(counts.sum()), 1)

    def rows(ids: Iterable[int]) -> tuple[TokenCount, ...]:
        return tuple(
            TokenCount(
                id=i,
                text=_short(spelled[i]),
                hex=spelled[i].hex(),
                num_bytes=len(spelled[i]),
                count=int(counts[i]),
                share=int(counts[i]) / total,
            )
            for i in ids
        )

    varied = (i for i in ordinary if len(set(spelled[i].strip())) > 1)
    longest = sorted(varied, key=lambda i: (-len(spelled[i]), i))[:TOP]
    frequent = sorted(ordinary, key=lambda i: (-counts[i], i))[:TOP]
    unused = [i for i in ordinary if not counts[i]]
    kinds = {i: "special" if i in special else kind_of(spelled[i]) for i in [*ordinary, *special]}
    lens = {i: min(len(spelled[i]), MAX_LEN) for i in ordinary}
    tenths = {i: min(10 * place // len(ordinary), 9) for place, i in enumerate(ordinary)}
    return Vocabulary(
        tokens=len(ordinary),
        used=len(ordinary) - len(unused),
        never_used=rows(unused[:TOP]),
        longest=rows(longest),
        frequent=rows(i for i in frequent if counts[i]),
        deciles=_groups(
            {i: _tenth(tenth) for i, tenth in tenths.items()}, counts, map(_tenth, range(10))
        ),
        lengths=_groups(
            {i: _length(n) for i, n in lens.items()}, counts, map(_length, range(1, MAX_LEN + 1))
        ),
        kinds=_groups(kinds, counts, KINDS_OF_TOKENS),
    )


KINDS_OF_TOKENS = (
    "one character",
    "word or part of one",
    "several words",
    "digits",
    "punctuation and symbols",
    "white space",
    "mixed",
    "part of a character",
    "special",
)
"""The kinds of tokens, in the order of the tables."""


def kind_of(data: bytes) -> str:
    """Return which of `KINDS_OF_TOKENS` the bytes of an ordinary token are.

    One space in front does not change the kind: ` cat` is a word, ` .` one character.
    """
    if not is_text(data):
        return "part of a character"
    text = data.decode()
    if not text.strip():
        return "white space"
    text = text.removeprefix(" ")
    if len(text) == 1:
        return "one character"
    letters = {unicodedata.category(char)[0] for char in text}
    if letters <= {"L", "M"}:
        return "word or part of one"
    if letters <= {"N"}:
        return "digits"
    if not letters & {"L", "M", "N"}:
        return "punctuation and symbols"
    runs = text.split()
    return "several words" if sum(_has_letter(run) for run in runs) > 1 else "mixed"


def _short(data: bytes) -> str:
    """Return a token as people can read it, in a few words."""
    shown = visible(data, max_chars=_SHOWN_CHARS)
    return _RUN.sub(lambda run: f"{run[1]}×{len(run[0])}", shown)


def _has_letter(text: str) -> bool:
    return any(unicodedata.category(char)[0] == "L" for char in text)


def _groups(
    name_of: dict[int, str], counts: NDArray[np.int64], names: Iterable[str]
) -> tuple[Group, ...]:
    tokens: Counter[str] = Counter()
    used: Counter[str] = Counter()
    uses: Counter[str] = Counter()
    for i, name in name_of.items():
        tokens[name] += 1
        used[name] += bool(counts[i])
        uses[name] += int(counts[i])
    total = max(int(counts.sum()), 1)
    return tuple(
        Group(name, tokens[name], used[name], uses[name] / total) for name in names if tokens[name]
    )


def _tenth(number: int) -> str:
    return f"{10 * number}–{10 * number + 10} %"


def _length(num_bytes: int) -> str:
    return f"{num_bytes}" if num_bytes < MAX_LEN else f"{MAX_LEN} and more"
