"""A pipeline at work: text to ids, ids to bytes.

Added tokens are found first; the text between them is normalised, cut into pre-tokens and merged.
Ids travel as uint32 bytes until the last moment, so that joining them costs next to nothing.
"""

import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

from llmlab.tokenizers.added_tokens import AddedTokens
from llmlab.tokenizers.alphabet import unspell, utf8
from llmlab.tokenizers.models.bpe import BPE, PieceCache
from llmlab.tokenizers.pipeline import Pipeline

Span = tuple[int, int]
"""Start and end, in characters unless said otherwise."""


class Encoder:
    """Turns text into ids as a pipeline says. It never changes; threads may share it.

    Args:
        pipeline: what decides the ids.

    Raises:
        TokenizerError: the merges do not fit the vocabulary, or an added token is not supported.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        vocab = pipeline.vocab
        added = {token.content: token.id for token in pipeline.added_tokens}
        self.ids = {**vocab, **added}
        self.token_bytes = [b""] * (max(self.ids.values(), default=-1) + 1)
        for token, token_id in vocab.items():
            self.token_bytes[token_id] = unspell(token)
        for token, token_id in added.items():
            self.token_bytes[token_id] = utf8(token)
        words = vocab if pipeline.ignore_merges else {}
        bpe = BPE(
            vocab,
            pipeline.merges,
            whole_words={word: i for word, i in words.items() if word not in added},
            unknown_id=self.ids.get(pipeline.unknown_token or ""),
        )
        self._added = AddedTokens(pipeline.added_tokens)
        self._normalizer = pipeline.normalizer
        self._find_pieces = pipeline.split.pattern.findall
        self._encoded = PieceCache(bpe.encode)

    def parts(self, text: str, *, allow_special: bool) -> Iterator[tuple[int, int, int | None]]:
        """Yield (start, end, id) of added tokens and (start, end, None) of what is between."""
        return self._added.parts(text, allow_special=allow_special)

    def encode(self, text: str, *, allow_special: bool) -> bytearray:
        """Return the ids of a text as uint32 bytes."""
        encoded = bytearray()
        for start, end, token in self.parts(text, allow_special=allow_special):
            encoded += self.encode_part(text[start:end]) if token is None else as_bytes(token)
        return encoded

    def encode_part(self, text: str) -> bytes:
        """Return the ids of text in which no added token is looked for."""
        return b"".join(map(self._encoded.__getitem__, self._pieces(text)))

    def encode_masked(self, text: str, spans: Sequence[Span]) -> Iterator[tuple[int, bool]]:
        """Yield the ids of text without added tokens, each with whether it overlaps a span."""
        edges = [
            (len(self._normalized(text[:first])), len(self._normalized(text[:last])))
            for first, last in spans
        ]
        at = 0
        for piece in self._pieces(text):
            inside = [  # the spans within the piece, in bytes
                (len(utf8(piece[: max(first - at, 0)])), len(utf8(piece[: last - at])))
                for first, last in edges
                if first < at + len(piece) and last > at
            ]
            done = 0
            for token in as_list(self._encoded[piece]):
                start, done = done, done + len(self.token_bytes[token])
                yield token, any(first < done and last > start for first, last in inside)
            at += len(piece)

    def _pieces(self, text: str) -> list[str]:
        return self._find_pieces(self._normalized(text))

    def _normalized(self, text: str) -> str:
        return unicodedata.normalize(self._normalizer, text) if self._normalizer else text


def as_bytes(token_id: int) -> bytes:
    """Return one id as uint32 bytes."""
    return np.uint32(token_id).tobytes()


def as_list(encoded: bytes | bytearray) -> list[int]:
    """Return uint32 bytes as ids."""
    return np.frombuffer(encoded, np.uint32).tolist()
