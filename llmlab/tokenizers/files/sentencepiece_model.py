"""Read SentencePiece's `.model` files.

The file is one protobuf message, `ModelProto` of SentencePiece's sentencepiece_model.proto, whose
field numbers are the numbers below. What is read: the pieces, how the text is normalised, and the
ids of the special pieces. Not here: how text is cut (models/unigram.py,
models/sentencepiece_bpe.py) and normalised (sentencepiece_rules.py); writing such files.

Source: Kudo and Richardson, arXiv:1808.06226.
"""

import math
import re
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from llmlab.errors import TokenizerError, UnsupportedPart
from llmlab.tokenizers.files.protobuf import Message
from llmlab.tokenizers.models.sentencepiece_bpe import SentencePieceBPE
from llmlab.tokenizers.models.unigram import Unigram

MAX_FILE_BYTES = 256 * 2**20
"""A larger file is no vocabulary; one of a million pieces takes about 25 MB."""

MAX_PIECE_BYTES = 8000
"""SentencePiece refuses longer pieces."""

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


class PieceType(IntEnum):
    """What a piece is for."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary; its id is its place."""

    text: str
    score: float
    type: PieceType


@dataclass(frozen=True, kw_only=True)
class NormalizerSpec:
    """How the text is changed before it is cut."""

    name: str = ""
    charsmap: bytes = b""
    """The compiled character map; empty for none."""

    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True


@dataclass(frozen=True, kw_only=True)
class SentencePieceModel:
    """What a `.model` file says."""

    pieces: tuple[Piece, ...]
    model_type: str
    """`unigram`, `bpe`, `word` or `char`."""

    normalizer_spec: NormalizerSpec
    byte_fallback: bool
    unk_id: int | None
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None

    def of_type(self, *types: PieceType) -> frozenset[int]:
        """Return the ids of the pieces of these types."""
        return frozenset(i for i, piece in enumerate(self.pieces) if piece.type in types)

    def model(self) -> Unigram | SentencePieceBPE:
        """Return what cuts the normalised text; a character model is a BPE that never joins.

        Raises:
            UnsupportedPart: it is a word model.
        """
        pieces = tuple((piece.text, piece.score) for piece in self.pieces)
        unmatched = self.of_type(PieceType.UNKNOWN, PieceType.CONTROL, PieceType.BYTE)
        unused = self.of_type(PieceType.UNUSED)
        user_defined = self.of_type(PieceType.USER_DEFINED)
        if self.model_type == "unigram":
            return Unigram(
                pieces=pieces,
                unk_id=self.unk_id,
                byte_fallback=self.byte_fallback,
                user_defined=user_defined,
                unmatched=unmatched | unused,
            )
        if self.model_type == "word":
            raise UnsupportedPart(
                "the SentencePiece model cuts text into whole words (model_type word), which is "
                "not supported; train a unigram, bpe or char model"
            )
        return SentencePieceBPE(
            pieces=pieces,
            unk_id=self.unk_id,
            byte_fallback=self.byte_fallback,
            user_defined=user_defined,
            unused=unused,
            unmatched=unmatched,
        )


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a `.model` file.

    Raises:
        TokenizerError: it cannot be read, is damaged, or is none of SentencePiece's.
        UnsupportedPart: it is whole, but asks for something that is not supported.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise TokenizerError(
                f"{path} has {path.stat().st_size} bytes; a SentencePiece model has at most "
                f"{MAX_FILE_BYTES}"
            )
        data = path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return parse_sentencepiece(data)
    except UnsupportedPart as error:
        raise UnsupportedPart(f"{path}: {error}") from error
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from error


def parse_sentencepiece(data: bytes) -> SentencePieceModel:
    """Read the content of a `.model` file; errors as in `read_sentencepiece`."""
    message = Message(data)
    trainer = Message(message.content(2))
    if trainer.number(24, 0):
        raise UnsupportedPart(
            "treat_whitespace_as_suffix is set; only models with spaces at the front of pieces "
            "are supported"
        )
    if Message(message.content(5)).content(2):
        raise UnsupportedPart("the model has a denormaliser; decoding through one is unsupported")
    pieces = tuple(_piece(number, content) for number, content in enumerate(message.contents(1)))
    model_type = _MODEL_TYPES.get(trainer.number(3, 1))
    if model_type is None:
        raise TokenizerError(f"model_type={trainer.number(3, 1)} is not one of {_MODEL_TYPES}")
    _check(pieces, byte_fallback=bool(trainer.number(35, 0)))
    ids = {piece.text: number for number, piece in enumerate(pieces)}

    def control(name: str) -> int | None:
        found = ids.get(name)
        return found if found is not None and pieces[found].type is PieceType.CONTROL else None

    return SentencePieceModel(
        pieces=pieces,
        model_type=model_type,
        normalizer_spec=_normalizer_spec(Message(message.content(3))),
        byte_fallback=bool(trainer.number(35, 0)),
        unk_id=next((i for i, p in enumerate(pieces) if p.type is PieceType.UNKNOWN), None),
        bos_id=control(trainer.text(46, "<s>")),
        eos_id=control(trainer.text(47, "</s>")),
        pad_id=control(trainer.text(48, "<pad>")),
    )


def _piece(number: int, content: bytes) -> Piece:
    message = Message(content)
    text, score, kind = message.text(1, ""), message.real(2, 0.0), message.number(3, 1)
    if not text or len(message.content(1)) >= MAX_PIECE_BYTES:
        raise TokenizerError(
            f"piece {number} has {len(message.content(1))} bytes; 1 to {MAX_PIECE_BYTES - 1} are "
            "allowed; the file is damaged"
        )
    if not math.isfinite(score):
        raise TokenizerError(f"piece {number} {text!r} has the score {score}; the file is damaged")
    try:
        return Piece(text, score, PieceType(kind))
    except ValueError as error:
        raise TokenizerError(
            f"piece {number} {text!r} has the type {kind}; known are 1 to 6"
        ) from error


def _check(pieces: tuple[Piece, ...], *, byte_fallback: bool) -> None:
    if not pieces:
        raise TokenizerError("there are no pieces; this is not a SentencePiece model")
    seen: dict[str, int] = {}
    for number, piece in enumerate(pieces):
        is_blank = piece.text == "\0" and piece.type is PieceType.UNUSED
        if seen.setdefault(piece.text, number) != number and not is_blank:
            raise TokenizerError(
                f"pieces {seen[piece.text]} and {number} are both {piece.text!r}; the file is "
                "damaged"
            )
        if piece.type is PieceType.BYTE and not (
            byte_fallback and _BYTE_PIECE.fullmatch(piece.text)
        ):
            raise TokenizerError(
                f"piece {number} {piece.text!r} is of the type byte; it must be <0x00> to <0xFF> "
                "in a model with byte_fallback"
            )
    unknown = sum(piece.type is PieceType.UNKNOWN for piece in pieces)
    if unknown > 1 or (unknown == 0 and not byte_fallback):
        raise TokenizerError(f"{unknown} pieces are of the type unknown; there must be one")


def _normalizer_spec(message: Message) -> NormalizerSpec:
    return NormalizerSpec(
        name=message.text(1, ""),
        charsmap=message.content(2),
        add_dummy_prefix=bool(message.number(3, 1)),
        remove_extra_whitespaces=bool(message.number(4, 1)),
        escape_whitespaces=bool(message.number(5, 1)),
    )
