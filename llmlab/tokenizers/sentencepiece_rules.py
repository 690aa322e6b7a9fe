"""SentencePiece's normaliser as a step of a pipeline, and how tokenizer.json spells it.

First a character map replaces strings, then rules about spaces are applied. `tokenizers` has parts
that come close; what they cannot say stands beside them under a key that it passes over, so that
reading the file back gives the same step. Not here: the `.model` file
(files/sentencepiece_model.py).

Source: Kudo and Richardson, arXiv:1808.06226.
"""

import base64
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from llmlab.tokenizers.alignment import Segment
from llmlab.tokenizers.charsmap import CharsMap, Unit, charsmap_rules
from llmlab.tokenizers.decoders import SPACE_MARK

KEY = "sentencepiece"
"""Where a component keeps what only SentencePiece knows."""


@dataclass(frozen=True, kw_only=True)
class SentencePieceRules:
    """What is done to a text before a SentencePiece model cuts it."""

    charsmap: bytes = b""
    """The compiled character map; empty for none."""

    add_dummy_prefix: bool = True
    """Put a space before the text."""

    remove_extra_whitespaces: bool = True
    """Drop spaces at both ends and after a space."""

    escape_whitespaces: bool = True
    """Write U+2581 for a space."""

    kept: tuple[str, ...] = ()
    """Texts that the map does not change: the user-defined pieces."""

    def apply(self, text: str) -> str:
        """Return the normalised text.

        Raises:
            TokenizerError: the character map is damaged.
        """
        if self._makes_runs_of_spaces:
            return "".join(replacement for _, replacement in self.segments(text))
        if not text:
            return ""
        text = self._map.apply(text) if self._map else text
        if self.remove_extra_whitespaces:
            text = re.sub("  +", " ", text).lstrip(" ").rstrip(" " + self._space)
            if not text:
                return ""
        text = " " + text if self.add_dummy_prefix else text
        return text.replace(" ", self._space)

    def segments(self, text: str) -> Iterator[Segment]:
        """Yield (characters, what they became), side by side; errors as in `apply`."""
        if not text:
            return
        segments = list(self._spaced(text))
        at = len(segments)
        # Spaces at the end go, and the prefix if nothing else is left.
        while self.remove_extra_whitespaces and at > 0:
            at -= 1
            length, replacement = segments[at]
            segments[at] = length, replacement.rstrip(self._space)
            if segments[at][1]:
                break
        yield from segments

    @cached_property
    def _map(self) -> CharsMap | None:
        rules = charsmap_rules(self.charsmap) if self.charsmap else {}
        return CharsMap(rules, kept=self.kept) if rules or self.kept else None

    @cached_property
    def _makes_runs_of_spaces(self) -> bool:
        """Whether the map may leave spaces side by side that count as one thing."""
        return self._map is not None and self._map.has("  ")

    @property
    def _space(self) -> str:
        return SPACE_MARK if self.escape_whitespaces else " "

    def _spaced(self, text: str) -> Iterator[Segment]:
        """Yield the segments with the rules about spaces applied but for those at the end."""
        if self.add_dummy_prefix:
            yield 0, self._space
        after_space = self.remove_extra_whitespaces
        for length, replacement in _by_spaces(self._units(text)):
            if after_space:
                replacement = replacement.lstrip(" ")
            if replacement:
                after_space = self.remove_extra_whitespaces and replacement.endswith(" ")
            yield length, replacement.replace(" ", self._space)

    def _units(self, text: str) -> Iterable[Unit]:
        return self._map.units(text) if self._map else [(len(text), text, False)]

    @property
    def component(self) -> dict[str, Any]:
        """Its entry in tokenizer.json."""
        parts: list[dict[str, Any]] = []
        if self.charsmap:
            encoded = base64.b64encode(self.charsmap).decode("ascii")
            parts.append({"type": "Precompiled", "precompiled_charsmap": encoded})
        if self.remove_extra_whitespaces:
            parts.append({"type": "Strip", "strip_left": True, "strip_right": True})
            parts.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
        if self.add_dummy_prefix:
            parts.append({"type": "Prepend", "prepend": " "})
        if self.escape_whitespaces:
            parts.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK})
        settings = {
            "add_dummy_prefix": self.add_dummy_prefix,
            "remove_extra_whitespaces": self.remove_extra_whitespaces,
            "escape_whitespaces": self.escape_whitespaces,
            "kept": list(self.kept),
        }
        return {"type": "Sequence", "normalizers": parts, KEY: settings}

    @classmethod
    def of_component(cls, component: dict[str, Any]) -> Self:
        """Read an entry that has `KEY`."""
        settings = component[KEY]
        encoded = [
            part["precompiled_charsmap"]
            for part in component["normalizers"]
            if part["type"] == "Precompiled"
        ]
        return cls(
            charsmap=base64.b64decode(encoded[0]) if encoded else b"",
            add_dummy_prefix=settings["add_dummy_prefix"],
            remove_extra_whitespaces=settings["remove_extra_whitespaces"],
            escape_whitespaces=settings["escape_whitespaces"],
            kept=tuple(settings["kept"]),
        )


def _by_spaces(units: Iterable[Unit]) -> Iterator[Segment]:
    """Yield the same segments with every space of a run on its own."""
    for length, replacement, is_one in units:
        if is_one or " " not in replacement:
            yield length, replacement
        else:
            yield from ((len(part), part) for part in re.findall("[^ ]+| ", replacement))
