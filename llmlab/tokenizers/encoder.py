"""A pipeline at work: text to ids and where each came from, ids to text.

Added tokens are found first; the text between them is normalised, cut into pre-tokens, and each
of these becomes ids. Words repeat (Zipf), so nearly every pre-token of a text comes from a cache.
Ids travel as uint32 bytes until the last moment, so that joining them costs next to nothing.
Long texts of byte-level BPE go through the compiled twin of all this (bulk.py).
"""

from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from importlib import import_module
from random import Random
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmlab.errors import TokenizerError
from llmlab.tokenizers.added_tokens import AddedTokens
from llmlab.tokenizers.alphabet import utf8
from llmlab.tokenizers.decoders import ByteLevelDecoder
from llmlab.tokenizers.models.bpe import BPE, PieceCache
from llmlab.tokenizers.normalizers import aligned, normalized
from llmlab.tokenizers.pipeline import ByteLevelBPE, Pipeline
from llmlab.tokenizers.stream import StreamDecoder

Span = tuple[int, int]
"""Start and end, in characters unless said otherwise."""

_BULK_CHARS = 2**18
"""Texts of this length together repay the start of the compiled path."""


class Encoding(NamedTuple):
    """The ids of a text and where they come from."""

    ids: NDArray[np.uint32]
    """(N,) token ids."""

    offsets: NDArray[np.int64]
    """(N, 2) start and end in the text, in characters; a token that holds part of a character
    covers the whole of it."""


class Encoder:
    """Turns text into ids as a pipeline says. It never changes; threads may share it.

    Args:
        pipeline: what decides the ids.

    Raises:
        TokenizerError: the merges do not fit the vocabulary, or an added token is not supported.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        added = {token.content: token.id for token in pipeline.added_tokens}
        self.ids = {**pipeline.vocab, **added}
        self.token_bytes = [b""] * (max(self.ids.values(), default=-1) + 1)
        decoder = pipeline.decoder
        for token, token_id in pipeline.vocab.items():
            self.token_bytes[token_id] = decoder.token_bytes(token)
        for token, token_id in added.items():
            is_plain = isinstance(decoder, ByteLevelDecoder)
            self.token_bytes[token_id] = utf8(token) if is_plain else decoder.token_bytes(token)
        self._tokens = {token_id: token for token, token_id in self.ids.items()}
        self._added = AddedTokens(pipeline.added_tokens)
        self._pieces = pipeline.split.pieces
        self._model = piece_encoder(pipeline)
        self._encoded = PieceCache(self._model.encode)

    # -- text to ids ---------------------------------------------------------------------------

    def parts(self, text: str, *, allow_special: bool) -> Iterator[tuple[int, int, int | None]]:
        """Yield (start, end, id) of added tokens and (start, end, None) of what is between."""
        return self._added.parts(text, allow_special=allow_special)

    def encode(self, text: str, *, allow_special: bool) -> bytes | bytearray:
        """Return the ids of a text as uint32 bytes."""
        encoded = bytearray()
        for start, end, token in self.parts(text, allow_special=allow_special):
            encoded += self.encode_part(text[start:end]) if token is None else as_bytes(token)
        return encoded

    def encode_part(self, text: str) -> bytes:
        """Return the ids of text in which no added token is looked for."""
        pieces = self._pieces(normalized(self._pipeline.normalizers, text))
        return b"".join(map(self._encoded.__getitem__, pieces))

    def encode_with_offsets(self, text: str, *, allow_special: bool) -> Encoding:
        """Return the ids of a text and the characters each stands for."""
        ids: list[int] = []
        offsets: list[NDArray[np.int64]] = []
        for start, end, token in self.parts(text, allow_special=allow_special):
            if token is None:
                part = self._part_with_offsets(text[start:end])
                ids += part.ids.tolist()
                offsets.append(part.offsets + start)
            else:
                ids.append(token)
                offsets.append(np.array([[start, end]]))
        joined = np.concatenate(offsets) if offsets else np.empty((0, 2), np.int64)
        return Encoding(np.array(ids, np.uint32), joined)

    def encode_masked(self, text: str, spans: Sequence[Span]) -> Iterator[tuple[int, bool]]:
        """Yield the ids of text without added tokens, each with whether it overlaps a span."""
        ids, offsets = self._part_with_offsets(text)
        for token, (start, end) in zip(ids.tolist(), offsets.tolist(), strict=True):
            yield token, any(first < end and last > start for first, last in spans)

    def encode_with_dropout(
        self, text: str, dropout: float, rng: Random, *, allow_special: bool
    ) -> list[int]:
        """Return ids of a text cut by merges of which some are left out by chance."""
        if not isinstance(self._model, BPE):
            kind = type(self._pipeline.model).__name__
            raise TokenizerError(f"dropout={dropout} needs merges to leave out; {kind} has none")
        ids: list[int] = []
        for start, end, token in self.parts(text, allow_special=allow_special):
            if token is not None:
                ids.append(token)
                continue
            for piece in self._pieces(normalized(self._pipeline.normalizers, text[start:end])):
                ids += self._model.encode_with_dropout(piece, dropout, rng)
        return ids

    # -- ids to text ---------------------------------------------------------------------------

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; bytes that are not UTF-8 become U+FFFD."""
        known = len(self.token_bytes)
        data = [self.token_bytes[token] if 0 <= token < known else b"" for token in ids]
        at = next((at for at, token in enumerate(data) if token), None)
        if at is not None:
            data[at] = self._first_bytes(ids[at])
        return b"".join(data).decode("utf-8", "replace")

    def stream(self, skipped: Collection[int]) -> StreamDecoder:
        """Return a decoder for ids that come one at a time; some of them stand for nothing."""
        known = len(self.token_bytes)

        def token_bytes(token: int) -> bytes:
            return self.token_bytes[token] if 0 <= token < known and token not in skipped else b""

        return StreamDecoder(token_bytes, self._first_bytes)

    def _first_bytes(self, token: int) -> bytes:
        decoder = self._pipeline.decoder
        is_plain = isinstance(decoder, ByteLevelDecoder)
        return self.token_bytes[token] if is_plain else decoder.first_bytes(self._tokens[token])

    # -- parts -----------------------------------------------------------------------------------

    def _part_with_offsets(self, text: str) -> Encoding:
        """Encode text without added tokens; every token of a piece knows its characters there."""
        alignment = aligned(self._pipeline.normalizers, text)
        ids: list[int] = []
        edges: list[Span] = []
        for at, end in self._pipeline.split.spans(alignment.text):
            for token, first, last in self._model.spans(alignment.text[at:end]):
                ids.append(token)
                edges.append((at + first, at + last))
        spans = np.array(edges, np.int64).reshape(-1, 2)
        offsets = [alignment.starts[spans[:, 0]], alignment.ends[spans[:, 1] - 1]]
        return Encoding(np.array(ids, np.uint32), np.stack(offsets, axis=1))


def piece_encoder(pipeline: Pipeline) -> PieceEncoder:
    """Return what turns one pre-token into ids, as the pipeline's model says."""
    match model := pipeline.model:
        case ByteLevelBPE():
            special = {token.content for token in pipeline.added_tokens}
            words = model.vocab if model.ignore_merges else {}
            ids = {**model.vocab, **{token.content: token.id for token in pipeline.added_tokens}}
            return BPE(
                model.vocab,
                model.merges,
                whole_words={word: i for word, i in words.items() if word not in special},
                unknown_id=ids.get(model.unknown_token or ""),
            )
        case Unigram():
            return UnigramEncoder(model)
        case SentencePieceBPE():
            return SentencePieceBPEEncoder(model)
        case WordPiece():
            return WordPieceEncoder(model)
        case WordLevel():
            return WordLevelEncoder(model)


def as_bytes(token_id: int) -> bytes:
    """Return one id as uint32 bytes."""
    return array("I", (token_id,)).tobytes()


def as_list(encoded: bytes | bytearray) -> list[int]:
    """Return uint32 bytes as ids."""
    return np.frombuffer(encoded, np.uint32).tolist()
