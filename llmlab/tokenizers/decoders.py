"""What the tokens of a vocabulary spell: each one's bytes, so that decoding is joining.

A decoder gives the bytes of a token, and those of a token that starts a text where they differ
(WordPiece puts a space before every word but the first). It also knows its `decoder` entry in
tokenizer.json. Not here: ids (encoder.py), bytes that come one token at a time (stream.py).
"""

import re
from dataclasses import dataclass
from typing import Any

from llmlab.errors import UnsupportedPart
from llmlab.tokenizers.alphabet import unspell

SPACE_MARK = "▁"
"""U+2581, which stands for a space in SentencePiece vocabularies."""

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class ByteLevelDecoder:
    """Tokens are bytes spelled in the byte alphabet."""

    def token_bytes(self, token: str) -> bytes:
        """Return the bytes of a token."""
        return unspell(token)

    def first_bytes(self, token: str) -> bytes:
        """Return the bytes of a token at the start of a text."""
        return unspell(token)

    @property
    def component(self) -> dict[str, Any] | None:
        """`decoder` of tokenizer.json."""
        return {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        }


@dataclass(frozen=True)
class FusingDecoder:
    """Tokens are text, put side by side."""

    def token_bytes(self, token: str) -> bytes:
        """Return the bytes of a token."""
        return token.encode()

    def first_bytes(self, token: str) -> bytes:
        """Return the bytes of a token at the start of a text."""
        return token.encode()

    @property
    def component(self) -> dict[str, Any] | None:
        """`decoder` of tokenizer.json."""
        return {"type": "Fuse"}


@dataclass(frozen=True)
class SentencePieceDecoder:
    """Tokens are text with U+2581 for a space, or one byte written `<0x0A>`."""

    strip_first_space: bool = False
    """Whether the text loses the space that the normaliser put before it."""

    def token_bytes(self, token: str) -> bytes:
        """Return the bytes of a token."""
        if byte := BYTE_TOKEN.fullmatch(token):
            return bytes([int(byte[1], 16)])
        return token.replace(SPACE_MARK, " ").encode()

    def first_bytes(self, token: str) -> bytes:
        """Return the bytes of a token at the start of a text."""
        data = self.token_bytes(token)
        return data.removeprefix(b" ") if self.strip_first_space else data

    @property
    def component(self) -> dict[str, Any] | None:
        """`decoder` of tokenizer.json."""
        replace = {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "}
        parts: list[dict[str, Any]] = [replace, {"type": "ByteFallback"}, {"type": "Fuse"}]
        if self.strip_first_space:
            parts.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        return {"type": "Sequence", "decoders": parts}


@dataclass(frozen=True)
class WordPieceDecoder:
    """Tokens are words, or with a prefix the rest of one; words are set apart by a space."""

    prefix: str = "##"
    cleanup: bool = True
    """Whether punctuation and English contractions lose the space before them."""

    def token_bytes(self, token: str) -> bytes:
        """Return the bytes of a token."""
        if token.startswith(self.prefix):
            return self._clean(token.removeprefix(self.prefix)).encode()
        return self._clean(f" {token}").encode()

    def first_bytes(self, token: str) -> bytes:
        """Return the bytes of a token at the start of a text, where a prefix stays."""
        return self._clean(token).encode()

    def _clean(self, text: str) -> str:
        if self.cleanup:
            for old, new in _CLEANED:
                text = text.replace(old, new)
        return text

    @property
    def component(self) -> dict[str, Any] | None:
        """`decoder` of tokenizer.json."""
        return {"type": "WordPiece", "prefix": self.prefix, "cleanup": self.cleanup}


Decoder = ByteLevelDecoder | FusingDecoder | SentencePieceDecoder | WordPieceDecoder

_CLEANED = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)
"""What `tokenizers` tidies in each token, in this order."""


def decoder_of_component(component: dict[str, Any] | None) -> Decoder:
    """Return the decoder that a `decoder` of tokenizer.json describes.

    Raises:
        UnsupportedPart: it is none of ours.
    """
    kind = (component or {}).get("type", "none")
    if component is not None and kind == "WordPiece":
        return WordPieceDecoder(component["prefix"], component["cleanup"])
    if kind == "ByteLevel":
        return ByteLevelDecoder()
    if kind == "Fuse":
        return FusingDecoder()
    for decoder in (SentencePieceDecoder(), SentencePieceDecoder(strip_first_space=True)):
        if component == decoder.component:
            return decoder
    if kind == "Metaspace" and component is not None and component["replacement"] == SPACE_MARK:
        return SentencePieceDecoder(strip_first_space=component["prepend_scheme"] != "never")
    raise UnsupportedPart(f"decoder {kind} is not supported yet")
