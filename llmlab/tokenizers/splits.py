r"""How text is cut into pre-tokens: the pieces that merges never cross.

Each way has a name, one regular expression whose matches lie side by side and cover any text, its
component in tokenizer.json, and the name by which llama.cpp knows it (`tokenizer.ggml.pre`). Only
expressions of published models are offered: a vocabulary trained on another one could not leave
for GGUF. Not here: merges (bpe.py, trainer.py).

`\p{L}` and `\p{N}` follow the Unicode version of the `regex` package, `tokenizers` that of its
own library; characters newer than the older of the two may be cut differently.
"""

from dataclasses import dataclass
from typing import Any

import regex

from llmlab.errors import ConfigError, TokenizerError, did_you_mean

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
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

    gguf_pre: str
    """`tokenizer.ggml.pre` of a GGUF file."""

    @property
    def pattern(self) -> regex.Pattern[str]:
        """The compiled expression; `findall` cuts a text."""
        return regex.compile(self.expression)


_LLAMA3_SPLIT = Split("llama3", _LLAMA3, _by_expression(_LLAMA3), "llama-bpe")

SPLITS: dict[str, Split] = {
    "gpt2": Split("gpt2", _GPT2, _byte_level(use_regex=True), "gpt-2"),
    "cl100k": _LLAMA3_SPLIT,  # Llama 3 took over the expression of cl100k
    "llama3": _LLAMA3_SPLIT,
    "qwen2": Split("qwen2", _QWEN2, _by_expression(_QWEN2), "qwen2"),
    "smollm": Split(
        "smollm",
        _SMOLLM,
        {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                _byte_level(use_regex=True),
            ],
        },
        "smollm",
    ),
}


def find_split(name: str) -> Split:
    """Return the split of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in SPLITS:
        raise ConfigError(f"split={name!r} is not known{did_you_mean(name, SPLITS)}")
    return SPLITS[name]


def split_of_gguf(pre: str) -> Split:
    """Return the split that a GGUF file names in `tokenizer.ggml.pre`.

    Raises:
        TokenizerError: there is none.
    """
    by_pre = {split.gguf_pre: split for split in SPLITS.values()}
    if pre not in by_pre:
        raise TokenizerError(
            f"tokenizer.ggml.pre={pre!r} is not supported yet{did_you_mean(pre, by_pre)}"
        )
    return by_pre[pre]


def split_of_component(component: dict[str, Any] | None) -> Split:
    """Return the split that a `pre_tokenizer` of tokenizer.json describes.

    Raises:
        TokenizerError: it is none of ours; the message names the part that is not supported.
    """
    parts = _parts(component)
    if not parts or parts[-1]["type"] != "ByteLevel":
        names = " + ".join(part["type"] for part in parts) or "none"
        raise TokenizerError(
            f"pre_tokenizer {names} is not supported yet; a byte-level one ends with ByteLevel"
        )
    *before, byte_level = parts
    if byte_level.get("add_prefix_space", True):
        raise TokenizerError("pre_tokenizer ByteLevel with add_prefix_space is not supported yet")
    stages = [_stage(part) for part in before]
    if byte_level.get("use_regex", True):
        stages.append(_GPT2)
    if stages == [r"\p{N}", _GPT2]:
        return SPLITS["smollm"]
    for split in SPLITS.values():
        if stages == [split.expression]:
            return split
    raise TokenizerError(
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
    raise TokenizerError(f"pre_tokenizer {kind} is not supported yet")
