"""The tokens of a short text one by one, for the coloured view.

Colours and markup are the page's; a piece says only which of them repeat.
"""

from dataclasses import dataclass

from llmlab.tokenizers import Tokenizer
from llmlab.tokenizers.report.visible import hex_bytes, is_text, visible

NUM_COLOURS = 6
"""Colours that follow one another, so that neighbours differ."""


_SPACE = "·\u200b"
"""A mark for a space, after which a line may break."""


@dataclass(frozen=True)
class Piece:
    """One token in its place."""

    id: int
    text: str
    """As people can read it; a line ends where the mark for its end stands."""

    about: str
    """Id, number of bytes, and the bytes in hex."""

    is_part: bool
    """Whether it holds only a part of a character."""


@dataclass(frozen=True)
class TokenView:
    """A text as tokens."""

    num_chars: int
    pieces: tuple[Piece, ...]


def view(tokenizer: Tokenizer, text: str) -> TokenView:
    """Return the tokens of a text."""
    pieces = (_piece(token, tokenizer.token_bytes(token)) for token in tokenizer.encode(text))
    return TokenView(len(text), tuple(pieces))


def _piece(token: int, data: bytes) -> Piece:
    size = f"{len(data)} byte" if len(data) == 1 else f"{len(data)} bytes"
    return Piece(
        id=token,
        text=visible(data, space=_SPACE, newline="⏎\n"),
        about=f"id {token}, {size}: {hex_bytes(data)}",
        is_part=not is_text(data),
    )
