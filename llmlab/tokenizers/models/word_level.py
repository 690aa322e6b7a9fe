"""Word level: a piece is a token or it is unknown. The simplest rung; character level is the same.

Not here: what a piece is (cuts.py), learning the vocabulary (trainers/words.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmlab.errors import TokenizerError


@dataclass(frozen=True)
class WordLevel:
    """A vocabulary of whole pieces."""

    vocab: dict[str, int]
    """Token to id."""

    unknown_token: str = "[UNK]"
    """What a piece becomes that is not in the vocabulary."""

    def encode(self, piece: str) -> list[int]:
        """Return the id of one piece.

        Raises:
            TokenizerError: neither the piece nor the unknown token is in the vocabulary.
        """
        token = self.vocab.get(piece, self.vocab.get(self.unknown_token))
        if token is None:
            raise TokenizerError(
                f"{piece!r} is not in the vocabulary, nor is the unknown token "
                f"{self.unknown_token!r}; add one of them"
            )
        return [token]

    def spans(self, piece: str) -> Iterator[tuple[int, int, int]]:
        """Yield (id, start, end) in characters: the one id covers the piece."""
        yield self.encode(piece)[0], 0, len(piece)

    @property
    def component(self) -> dict[str, Any]:
        """`model` of tokenizer.json."""
        return {
            "type": "WordLevel",
            "vocab": dict(sorted(self.vocab.items(), key=lambda item: item[1])),
            "unk_token": self.unknown_token,
        }
