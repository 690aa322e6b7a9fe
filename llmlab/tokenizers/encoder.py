"""A pipeline at work: text to ids and where each came from, ids to text.

Added tokens are found first; the text between them is normalised, cut into pre-tokens, and each
of these becomes ids. Words repeat (Zipf), so nearly every pre-token of a text comes from a cache.
Ids travel as uint32 bytes until the last moment, so that joining them costs next to nothing.
Many texts at once of byte-level BPE and Unigram go through compiled twins of all this (bulk.py,
bulk_unigram.py).
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, partial
from importlib import import_module
from random import Random
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from llmlab.errors import TokenizerError
from llmlab.tokenizers.added_tokens import AddedTokens
from llmlab.tokenizers.alphabet import utf8
from llmlab.tokenizers.decoders import ByteLevelDecoder
from llmlab.tokenizers.models.bpe import BPE, ByteLevelBPE, PieceCache
from llmlab.tokenizers.models.sentencepiece_bpe import (
    SentencePieceBPE,
    SentencePieceBPEEncoder,
)
from llmlab.tokenizers.models.unigram import Unigram, UnigramEncoder
from llmlab.tokenizers.models.word_level import WordLevel
from llmlab.tokenizers.models.wordpiece import WordPiece
from llmlab.tokenizers.normalizers import aligned, normalized
from llmlab.tokenizers.pipeline import Pipeline
from llmlab.tokenizers.splits import Split
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

    def encode_part(self, text: str, *, is_start: bool = True) -> bytes:
        """Return the ids of text in which no added token is looked for.

        Args:
            text: a part of a text.
            is_start: whether the text starts with it, which makes no difference here.
        """
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

    def encode_batch(
        self, texts: Sequence[str], *, allow_special: bool, num_threads: int | None
    ) -> list[NDArray[np.uint32]]:
        """Return the ids of each text."""
        if self._bulk is None or sum(map(len, texts)) < _BULK_CHARS:
            return [
                np.frombuffer(self.encode(text, allow_special=allow_special), np.uint32)
                for text in texts
            ]
        parts = [list(self._normal_parts(text, allow_special=allow_special)) for text in texts]
        plain = [part for row in parts for part in row if isinstance(part, bytes)]
        encoded = iter(self._bulk.encode_many(plain, num_threads=num_threads))
        return [_joined(row, encoded) for row in parts]

    def encode_chunks(
        self, chunks: Iterable[str], *, allow_special: bool
    ) -> Iterator[NDArray[np.uint32]]:
        """Yield the ids of one text that comes in chunks; only byte-level BPE starts at once."""
        if not isinstance(self._model, BPE):
            yield np.frombuffer(
                self.encode("".join(chunks), allow_special=allow_special), np.uint32
            )
            return
        steps = self._pipeline.normalizers
        yield from import_module("llmlab.tokenizers.long_texts").encode_chunks(
            chunks,
            self._bulk,
            self._added,
            allow_special=allow_special,
            normalize=partial(normalized, steps) if steps else None,
        )

    @cached_property
    def _bulk(self) -> Any:
        """The compiled twin for many texts; None for pipelines that have none."""
        model, split = self._pipeline.model, self._pipeline.split
        # Loaded late: it brings the compiler, which short texts do without.
        if isinstance(self._model, BPE) and isinstance(split, Split):
            return import_module("llmlab.tokenizers.bulk").BulkBPE(self._model, split.rules)
        if isinstance(model, Unigram) and split.name in ("marks", "whole"):
            bulk = import_module("llmlab.tokenizers.bulk_unigram")
            return bulk.BulkUnigram(model, cuts_at_marks=split.name == "marks")
        return None

    def _normal_parts(self, text: str, *, allow_special: bool) -> Iterator[bytes | int]:
        """Yield the ids of added tokens and, in UTF-8, the normalised text between them."""
        for start, end, token in self.parts(text, allow_special=allow_special):
            if token is None:
                yield utf8(normalized(self._pipeline.normalizers, text[start:end]))
            else:
                yield token

    def encode_masked(
        self, text: str, spans: Sequence[Span], *, is_start: bool = True
    ) -> Iterator[tuple[int, bool]]:
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

    def stream(self) -> StreamDecoder:
        """Return a decoder for ids that come one at a time."""
        known = len(self.token_bytes)
        return StreamDecoder(
            lambda token: self.token_bytes[token] if 0 <= token < known else b"",
            self._first_bytes,
        )

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


class PieceEncoder(Protocol):
    """What turns one pre-token into ids."""

    def encode(self, piece: str) -> list[int]:
        """Return the ids of a pre-token."""
        ...

    def spans(self, piece: str) -> Iterator[tuple[int, int, int]]:
        """Yield (id, start, end) in characters of the pre-token."""
        ...


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
        case WordPiece() | WordLevel():
            return model


def _joined(
    parts: Sequence[bytes | int], encoded: Iterator[NDArray[np.uint32]]
) -> NDArray[np.uint32]:
    """Put the ids of a text together: given ones, and the next encoded for each stretch of text."""
    arrays = [
        next(encoded) if isinstance(part, bytes) else np.array([part], np.uint32) for part in parts
    ]
    return arrays[0] if len(arrays) == 1 else np.concatenate([np.empty(0, np.uint32), *arrays])


def as_bytes(token_id: int) -> bytes:
    """Return one id as uint32 bytes."""
    return array("I", (token_id,)).tobytes()


def as_list(encoded: bytes | bytearray) -> list[int]:
    """Return uint32 bytes as ids."""
    return np.frombuffer(encoded, np.uint32).tolist()
