"""Unigram: of all ways to cut a text into pieces, the most probable one.

Each piece has a log-probability, a segmentation the sum of its pieces', and Viterbi's recursion
over the characters finds the best. This is the readable specification, exact to the bit against
SentencePiece; texts in bulk go through compiled/lattice.py. Not here: learning the pieces
(trainers/unigram.py), cutting text at spaces and writing a space as U+2581 (normalizers).

Source: Kudo, arXiv:1804.10959; Kudo and Richardson, arXiv:1808.06226.
"""

import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmlab.tokenizers.alphabet import utf8
from llmlab.tokenizers.models.unknown import NO_PIECE, UnknownCharacters

UNKNOWN_PENALTY = 10.0
"""How much less probable than the rarest piece a character without a piece is (nats)."""

SCORE_LIMIT = 100_000.0
"""A sum past it starts again from zero, so that long texts keep their digits in float32."""


@dataclass(frozen=True, kw_only=True)
class Unigram:
    """The pieces of a Unigram model and what each is for."""

    pieces: tuple[tuple[str, float], ...]
    """Piece and log-probability, by id."""

    unk_id: int | None
    """What a character without a piece becomes; a run of them becomes one."""

    byte_fallback: bool = False
    """Whether a character without a piece becomes its bytes, the pieces `<0x00>` to `<0xFF>`."""

    user_defined: frozenset[int] = frozenset()
    """Ids that win against any other segmentation, the longest first."""

    unmatched: frozenset[int] = frozenset()
    """Ids that no text becomes: control pieces, bytes, the unknown piece, unused ones."""

    single_precision: bool = True
    """Whether scores add up in float32, as in SentencePiece; `tokenizers` adds in float64."""

    @property
    def vocab(self) -> dict[str, int]:
        """Piece to id."""
        return {piece: token for token, (piece, _) in enumerate(self.pieces)}

    @property
    def component(self) -> dict[str, Any]:
        """`model` of tokenizer.json."""
        component: dict[str, Any] = {
            "type": "Unigram",
            "unk_id": self.unk_id,
            "vocab": [[piece, score] for piece, score in self.pieces],
            "byte_fallback": self.byte_fallback,
        }
        if self.single_precision:  # a key that `tokenizers` passes over
            types = {name: sorted(getattr(self, name)) for name in ("user_defined", "unmatched")}
            component["sentencepiece"] = types
        return component

    @property
    def unknown_score(self) -> float:
        """Log-probability of a character that has no piece."""
        special = self.user_defined | self.unmatched
        scores = [score for token, (_, score) in enumerate(self.pieces) if token not in special]
        return _rounded(min(scores, default=0.0) - UNKNOWN_PENALTY, self.number_type)

    @property
    def scores(self) -> list[float]:
        """What each piece adds to a segmentation, by id.

        A user-defined piece of n bytes adds 0.1 (n - 1): more than any probability, and more
        than the user-defined pieces it could be cut into.
        """
        return [
            _rounded(
                0.1 * (len(utf8(piece)) - 1) if token in self.user_defined else score,
                self.number_type,
            )
            for token, (piece, score) in enumerate(self.pieces)
        ]

    @property
    def score_limit(self) -> float:
        """Where sums start again from zero."""
        return SCORE_LIMIT if self.single_precision else math.inf

    @property
    def number_type(self) -> str:
        """`array` type code of the sums."""
        return "f" if self.single_precision else "d"


class UnigramEncoder:
    """Cuts text as a model says. It never changes; threads may share it.

    Args:
        model: the pieces.

    Raises:
        TokenizerError: byte fallback is asked for and a byte has no piece.
    """

    def __init__(self, model: Unigram) -> None:
        vocab = model.vocab
        self._scores = model.scores
        self._unknown_score = model.unknown_score
        self._number_type = model.number_type
        self._limit = model.score_limit
        self._unknown = UnknownCharacters(
            vocab, unk_id=model.unk_id, byte_fallback=model.byte_fallback
        )
        self._prefixes: dict[str, int] = {}  # every prefix of a piece; to its id if it is one
        for piece, token in vocab.items():
            if token not in model.unmatched:
                for end in range(1, len(piece)):
                    self._prefixes.setdefault(piece[:end], NO_PIECE)
                self._prefixes[piece] = token

    def encode(self, piece: str) -> list[int]:
        """Return the ids of one pre-token."""
        return [token for token, _, _ in self.spans(piece)]

    def spans(self, piece: str) -> Iterator[tuple[int, int, int]]:
        """Yield (id, start, end) in characters; the bytes of one character share its span.

        Raises:
            TokenizerError: a character has no piece, and the model nothing to write for it.
        """
        return self._unknown.filled(piece, self._best_path(piece))

    def _best_path(self, text: str) -> list[tuple[int, int, int]]:
        """Return (id or NO_PIECE, start, end) of the best segmentation, in order."""
        size = len(text)
        best = array(self._number_type, [0.0]) * (size + 1)
        total = array(self._number_type, [0.0])  # rounds what is put in
        came_from = [-1] * (size + 1)
        tokens = [NO_PIECE] * (size + 1)
        reach = 0  # no way leads further yet
        for start in range(size):
            if abs(best[start]) > self._limit:
                _restart(best, came_from, start, reach)
            for token, end in self._edges(text, start):
                reach = max(reach, end)
                score = self._unknown_score if token == NO_PIECE else self._scores[token]
                total[0] = best[start] + score
                if came_from[end] < 0 or total[0] > best[end]:  # of equals the first one stays
                    best[end], came_from[end], tokens[end] = total[0], start, token
        path = []
        while size > 0:
            path.append((tokens[size], came_from[size], size))
            size = came_from[size]
        return path[::-1]

    def _edges(self, text: str, start: int) -> Iterator[tuple[int, int]]:
        """Yield (id, end) of the pieces that start here; NO_PIECE for a character without one."""
        has_single = False
        for end in range(start + 1, len(text) + 1):
            token = self._prefixes.get(text[start:end])
            if token is None:
                break
            if token != NO_PIECE:
                has_single |= end == start + 1
                yield token, end
        if not has_single:
            yield NO_PIECE, start + 1


def _restart(best: "array[float]", came_from: list[int], start: int, reach: int) -> None:
    """Count the sums from here on from zero."""
    offset = best[start]
    for at in range(start, reach + 1):
        if at == start or came_from[at] >= 0:
            best[at] -= offset


def _rounded(number: float, number_type: str) -> float:
    return array(number_type, [number])[0]
