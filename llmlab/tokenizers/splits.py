r"""How text is cut into pre-tokens: the pieces that merges never cross.

Each way has a name, one regular expression whose matches lie side by side and cover any text, its
component in tokenizer.json, the name by which llama.cpp knows it (`tokenizer.ggml.pre`), and the
rules by which the compiled scanner finds the same pieces. The expressions are those of published
models; with another grouping of digits llama.cpp has no name for them, and a vocabulary trained
so cannot leave for GGUF. Not here: merges (models/bpe.py), the scanner (compiled/scanner.py).

`\p{L}` and `\p{N}` follow the Unicode version of the `regex` package, `tokenizers` that of its
own library; characters newer than the older of the two may be cut differently.
"""

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import regex

from llmlab.errors import ConfigError, TokenizerError, UnsupportedPart, did_you_mean
from llmlab.tokenizers.scan_rules import CL100K, GPT2, O200K, ScanRules

MAX_GROUPED_DIGITS = 3
"""The longest group of digits that `find_split` offers."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# White space at the end of a text is one piece, newlines in it or not: `\s++$` in tiktoken, where
# `$` is the end of the text; the form here means the same to `regex` and to `tokenizers`.
_CL100K = _LLAMA3.replace(r"|\s*[\r\n]+", r"|\s++(?!\S)|\s*[\r\n]+")
_O200K = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
# Digits one by one, then GPT-2 on what lies between, as one expression: a piece ends before a
# digit, so white space there is at the end of its piece and stays whole.
_SMOLLM = r"'s|'t|'re|'ve|'m|'ll|'d|\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _by_expression(expression: str) -> dict[str, Any]:
    split = {
        "type": "Split",
        "pattern": {"Regex": expression},
        "behavior": "Isolated",
        "invert": False,
    }
    return {"type": "Sequence", "pretokenizers": [split, _byte_level(use_regex=False)]}


@dataclass(frozen=True)
class Split:
    """One way to cut text."""

    name: str
    expression: str
    """Matches lie side by side and cover any text."""

    component: dict[str, Any]
    """`pre_tokenizer` of tokenizer.json."""

    rules: ScanRules
    """The same pieces, as the compiled scanner is told."""

    gguf_pre: str | None = None
    """`tokenizer.ggml.pre` of a GGUF file; None when llama.cpp has no name for it."""

    @cached_property
    def pattern(self) -> regex.Pattern[str]:
        """The compiled expression."""
        return regex.compile(self.expression)

    def pieces(self, text: str) -> list[str]:
        """Return the pieces of a text."""
        return self.pattern.findall(text)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return start and end of each piece, in characters."""
        return [match.span() for match in self.pattern.finditer(text)]


_SMOLLM_COMPONENT = {
    "type": "Sequence",
    "pretokenizers": [{"type": "Digits", "individual_digits": True}, _byte_level(use_regex=True)],
}

SPLITS: dict[str, Split] = {
    split.name: split
    for split in (
        Split(
            "gpt2", _GPT2, _byte_level(use_regex=True), ScanRules(GPT2, spaced_numbers=1), "gpt-2"
        ),
        Split("cl100k", _CL100K, _by_expression(_CL100K), ScanRules(CL100K, 3, whole_at_end=1)),
        Split("llama3", _LLAMA3, _by_expression(_LLAMA3), ScanRules(CL100K, 3), "llama-bpe"),
        Split("qwen2", _QWEN2, _by_expression(_QWEN2), ScanRules(CL100K, 1), "qwen2"),
        Split("o200k", _O200K, _by_expression(_O200K), ScanRules(O200K, 3), "gpt-4o"),
        Split(
            "smollm",
            _SMOLLM,
            _SMOLLM_COMPONENT,
            ScanRules(GPT2, 1, whole_before_numbers=1),
            "smollm",
        ),
    )
}
"""The ways of published models.

`cl100k` and `llama3` differ in white space at the end of a text alone, so llama.cpp, which knows
only the latter, is not told that it could read the former.
"""

# How each expression spells a number, in an alternative of its own.
_NUMBERS = {
    "gpt2": r"\p{N}+",
    "cl100k": r"\p{N}{1,3}",
    "llama3": r"\p{N}{1,3}",
    "qwen2": r"\p{N}",
    "o200k": r"\p{N}{1,3}",
    "smollm": r"\p{N}",
}


def _with_digits(split: Split, digits: int) -> Split:
    number = r"\p{N}" if digits == 1 else rf"\p{{N}}{{1,{digits}}}"
    alternatives = split.expression.split("|")
    place = [part.removeprefix(" ?") for part in alternatives].index(_NUMBERS[split.name])
    alternatives[place] = alternatives[place].replace(_NUMBERS[split.name], number)
    expression = "|".join(alternatives)
    return Split(
        name=f"{split.name}-digits{digits}",
        expression=expression,
        component=_by_expression(expression),
        rules=split.rules._replace(max_digits=digits),
    )


@cache
def _by_expressions() -> dict[str, Split]:
    """Return every split by its expression.

    Where two names make one expression (`llama3` and `qwen2` with two digits), the later one of
    `SPLITS` has it; a published split keeps its own.
    """
    grouped = (
        _with_digits(split, digits)
        for split in SPLITS.values()
        for digits in range(1, MAX_GROUPED_DIGITS + 1)
    )
    return {split.expression: split for split in (*grouped, *SPLITS.values())}


def all_splits() -> tuple[Split, ...]:
    """Return the published splits and those with another grouping of digits."""
    return tuple(_by_expressions().values())


def find_split(name: str, *, digits: int | None = None) -> Split:
    r"""Return the split of this name.

    Args:
        name: a name of `SPLITS`, or of a split that this function made.
        digits: how many digits (`\p{N}`) of a number make one piece, 1 to 3, counted from its
            left; None leaves it to the split. `gpt2` sets no limit of its own and joins a space
            to the number, so there the first piece is the space and that many digits.

    Returns:
        A published split where the expression is one (`qwen2` with three digits is `llama3`),
        else one named like `qwen2-digits2`, which llama.cpp has no name for.

    Raises:
        ConfigError: there is none, or `digits` is out of range.
    """
    names = {split.name: split for split in all_splits()}
    if name not in names or (digits is not None and name not in SPLITS):
        raise ConfigError(f"split={name!r} is not known{did_you_mean(name, SPLITS)}")
    if digits is None:
        return names[name]
    if not 1 <= digits <= MAX_GROUPED_DIGITS:
        raise ConfigError(f"digits={digits} is out of range; take 1 to {MAX_GROUPED_DIGITS}")
    return _by_expressions()[_with_digits(SPLITS[name], digits).expression]


def split_of_gguf(pre: str) -> Split:
    """Return the split that a GGUF file names in `tokenizer.ggml.pre`.

    Raises:
        TokenizerError: there is none.
    """
    by_pre = {split.gguf_pre: split for split in SPLITS.values() if split.gguf_pre}
    if pre not in by_pre:
        raise TokenizerError(
            f"tokenizer.ggml.pre={pre!r} is not supported yet{did_you_mean(pre, by_pre)}"
        )
    return by_pre[pre]


def split_of_component(component: dict[str, Any] | None) -> Split:
    """Return the split that a `pre_tokenizer` of tokenizer.json describes.

    Raises:
        UnsupportedPart: it is none of ours; the message names the part that is not supported.
    """
    parts = _parts(component)
    if not parts or parts[-1]["type"] != "ByteLevel":
        names = " + ".join(part["type"] for part in parts) or "none"
        raise UnsupportedPart(
            f"pre_tokenizer {names} is not supported yet; a byte-level one ends with ByteLevel"
        )
    *before, byte_level = parts
    if byte_level.get("add_prefix_space", True):
        raise UnsupportedPart("pre_tokenizer ByteLevel with add_prefix_space is not supported yet")
    stages = [_stage(part) for part in before]
    if byte_level.get("use_regex", True):
        stages.append(_GPT2)
    if stages == [r"\p{N}", _GPT2]:
        return SPLITS["smollm"]
    if len(stages) == 1 and stages[0] in _by_expressions():
        return _by_expressions()[stages[0]]
    raise UnsupportedPart(
        f"pre_tokenizer with the expressions {stages} is not supported yet; "
        f"known ways to split: {', '.join(SPLITS)}"
    )


def _parts(component: dict[str, Any] | None) -> list[dict[str, Any]]:
    if component is None:
        return []
    if component["type"] == "Sequence":
        return list(component["pretokenizers"])
    return [component]


def _stage(part: dict[str, Any]) -> str:
    """Return the expression that a part cuts by, when every match and every gap is a piece."""
    kind = part["type"]
    if kind == "Digits" and part.get("individual_digits"):
        return r"\p{N}"
    if kind == "Split":
        way = (part["behavior"], part.get("invert", False))
        expression = part["pattern"].get("Regex")
        # "Removed, inverted" drops what lies between matches; ours leave nothing between.
        if expression and way in (("Isolated", False), ("Removed", True)):
            return expression
        kind = f"Split with pattern {part['pattern']} and behavior {way[0]}, invert {way[1]}"
    raise UnsupportedPart(f"pre_tokenizer {kind} is not supported yet")
