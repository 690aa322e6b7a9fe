"""WordPiece: the longest token that starts a word, then the longest that goes on, to its end.

A word of which some part is in no token, or that is too long, is one unknown token. No slice is
longer than the longest token, so a word of n characters takes O(n) look-ups. Not here: what a word
is (cuts.py), learning the vocabulary (trainers/wordpiece.py).

Source: Wu et al., arXiv:1609.08144; Devlin et al., arXiv:1810.04805.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from llmlab.errors import TokenizerError


@dataclass(frozen=True)
class WordPiece:
    """A vocabulary of words and parts of words.

    Raises:
        TokenizerError: the unknown token is not in the vocabulary.
    """

    vocab: dict[str, int]
    """Token to id."""

    unknown_token: str = "[UNK]"
    """What a word becomes that the vocabulary does not spell."""

    prefix: str = "##"
    """What a token starts with that goes on with a word."""

    max_chars: int = 100
    """A longer word is unknown."""

    def __post_init__(self) -> None:
        if self.unknown_token not in self.vocab:
            raise TokenizerError(
                f"unknown token {self.unknown_token!r} is not in the vocabulary; add it there"
            )

    def encode(self, piece: str) -> list[int]:
        """Return the ids of one word."""
        if (whole := self.vocab.get(piece)) is not None and len(piece) <= self.max_chars:
            return [whole]
        ids: list[int] = []
        start, end = 0, len(piece)
        tokens, longest = self.vocab, self._longest
        while start < end <= self.max_chars:
            for stop in range(min(end, start + longest), start, -1):
                if (token := tokens.get(piece[start:stop])) is not None:
                    break
            else:
                return [self.vocab[self.unknown_token]]
            ids.append(token)
            start = stop
            tokens, longest = self._rests, self._longest_rest
        return ids if start == end else [self.vocab[self.unknown_token]]

    def spans(self, piece: str) -> Iterator[tuple[int, int, int]]:
        """Yield (id, start, end) in characters; the unknown token covers the word."""
        start = 0
        for token in self.encode(piece):
            lengths = self._rest_lengths if start else self._first_lengths
            end = len(piece) if token == self.vocab[self.unknown_token] else start + lengths[token]
            yield token, start, end
            start = end

    @property
    def component(self) -> dict[str, Any]:
        """`model` of tokenizer.json."""
        return {
            "type": "WordPiece",
            "unk_token": self.unknown_token,
            "continuing_subword_prefix": self.prefix,
            "max_input_chars_per_word": self.max_chars,
            "vocab": dict(sorted(self.vocab.items(), key=lambda item: item[1])),
        }

    @cached_property
    def _rests(self) -> dict[str, int]:
        """Tokens that go on with a word, without the prefix."""
        cut = len(self.prefix)
        return {
            token[cut:]: token_id
            for token, token_id in self.vocab.items()
            if token.startswith(self.prefix)
        }

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.vocab))

    @cached_property
    def _longest_rest(self) -> int:
        return max(map(len, self._rests), default=0)

    @cached_property
    def _first_lengths(self) -> dict[int, int]:
        """Characters by id, at the start of a word."""
        return {token_id: len(token) for token, token_id in self.vocab.items()}

    @cached_property
    def _rest_lengths(self) -> dict[int, int]:
        """Characters by id, after the start of a word."""
        return {token_id: len(rest) for rest, token_id in self._rests.items()}
