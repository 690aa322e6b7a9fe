"""SentencePiece's normaliser as a step of a pipeline, and how tokenizer.json spells it.

`tokenizers` has parts that come close; what they cannot say stands beside them under a key that it
passes over, so that reading the file back gives the same step. Not here: how the text is changed
(charsmap.py), the `.model` file (files/sentencepiece_model.py).
"""

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from llmlab.tokenizers.alignment import Segment
from llmlab.tokenizers.charsmap import SentencePieceNormalizer, charsmap_rules
from llmlab.tokenizers.decoders import SPACE_MARK

KEY = "sentencepiece"
"""Where a component keeps what only SentencePiece knows."""


@dataclass(frozen=True, kw_only=True)
class SentencePieceRules:
    """What is done to a text before a SentencePiece model cuts it."""

    charsmap: bytes = b""
    """The compiled character map; empty for none."""

    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True
    kept: tuple[str, ...] = ()
    """Texts that nothing changes: the user-defined pieces."""

    def apply(self, text: str) -> str:
        """Return the normalised text."""
        return self._normalizer.apply(text)

    def segments(self, text: str) -> Iterator[Segment]:
        """Yield (characters, what they became), side by side."""
        return self._normalizer.segments(text)

    @cached_property
    def _normalizer(self) -> SentencePieceNormalizer:
        return SentencePieceNormalizer(
            charsmap_rules(self.charsmap) if self.charsmap else {},
            add_dummy_prefix=self.add_dummy_prefix,
            remove_extra_whitespaces=self.remove_extra_whitespaces,
            escape_whitespaces=self.escape_whitespaces,
            kept=self.kept,
        )

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
