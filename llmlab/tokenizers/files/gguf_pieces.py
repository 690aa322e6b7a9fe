"""SentencePiece's pieces in a GGUF file: what Unigram and SentencePiece's BPE have in common.

Types of tokens have the same numbers in both formats. Not here: what each of the two refuses
(gguf_unigram.py, gguf_sentencepiece_bpe.py).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from llmlab.errors import TokenizerError
from llmlab.tokenizers.files.gguf_tokens import GgufTokens, role_metadata, token_metadata
from llmlab.tokenizers.files.gguf_writer import Value
from llmlab.tokenizers.files.sentencepiece_model import (
    NormalizerSpec,
    Piece,
    PieceType,
    SentencePieceModel,
)
from llmlab.tokenizers.files.sentencepiece_pipeline import sentencepiece_pipeline
from llmlab.tokenizers.models.sentencepiece_bpe import SentencePieceBPE
from llmlab.tokenizers.models.unigram import Unigram
from llmlab.tokenizers.models.unknown import byte_ids
from llmlab.tokenizers.pipeline import Pipeline
from llmlab.tokenizers.sentencepiece_rules import SentencePieceRules
from llmlab.tokenizers.tokenizer import Tokenizer


def piece_metadata(
    tokenizer: Tokenizer,
    pipeline: Pipeline,
    model: Unigram | SentencePieceBPE,
    rules: SentencePieceRules,
    *,
    user_defined: PieceType,
) -> dict[str, Value]:
    """Return the keys that both kinds have.

    Args:
        tokenizer: the tokenizer.
        pipeline: what decides its ids.
        model: its pieces.
        rules: what is done about spaces.
        user_defined: the type that user-defined pieces get.

    Raises:
        TokenizerError: the file cannot say what text becomes which piece.
    """
    types = _types(pipeline, model) | dict.fromkeys(model.user_defined, user_defined)
    return {
        "tokenizer.ggml.pre": "default",
        **token_metadata(pipeline, tokenizer.vocab_size, types=types),
        "tokenizer.ggml.scores": _exact_scores(model.pieces, tokenizer.vocab_size),
        "tokenizer.ggml.add_space_prefix": rules.add_dummy_prefix,
        "tokenizer.ggml.remove_extra_whitespaces": rules.remove_extra_whitespaces,
        **role_metadata(tokenizer, pipeline, unknown_id=model.unk_id),
        "llmlab.tokenizer.num_pieces": len(model.pieces),
    }


def read_pieces(tokens: GgufTokens) -> tuple[Piece, ...]:
    """Return the pieces of the model, by id."""
    number = int(tokens.said("num_pieces", len(tokens.texts)))
    scores, types = tokens.numbers("scores").tolist(), tokens.types.tolist()
    return tuple(
        Piece(text, float(score), PieceType(kind))
        for text, score, kind in list(zip(tokens.texts, scores, types, strict=True))[:number]
    )


def pieces_pipeline(
    tokens: GgufTokens,
    pieces: Sequence[Piece],
    spec: NormalizerSpec,
    *,
    model_type: Literal["unigram", "bpe"],
) -> Pipeline:
    """Build the pipeline that SentencePiece has for these pieces.

    Raises:
        TokenizerError: the character map is damaged.
    """
    model = SentencePieceModel(
        pieces=tuple(pieces),
        model_type=model_type,
        normalizer_spec=spec,
        byte_fallback=any(piece.type is PieceType.BYTE for piece in pieces),
        unk_id=tokens.id_of("unknown"),
        bos_id=tokens.id_of("bos"),
        eos_id=tokens.id_of("eos"),
        pad_id=tokens.id_of("padding"),
    )
    pipeline, _ = sentencepiece_pipeline(model)
    # Where the file does not say, llama.cpp starts texts of the one and ends those of the other.
    return replace(
        pipeline,
        added_tokens=tokens.added_tokens(user_defined=False),
        bos_tokens=tokens.beside_text("bos", default=model_type == "bpe"),
        eos_tokens=tokens.beside_text("eos", default=model_type == "unigram"),
    )


def _exact_scores(pieces: tuple[tuple[str, float], ...], vocab_size: int) -> np.ndarray:
    """Return the score of every id as the file holds it, float32; 0 for an id without a piece."""
    scores = np.zeros(vocab_size, np.float32)
    scores[: len(pieces)] = [score for _, score in pieces]
    for (piece, score), written in zip(pieces, scores.tolist(), strict=False):
        if score != written:
            raise TokenizerError(
                f"piece {piece!r} has the score {score!r}, and a GGUF file has no more digits than "
                f"{written!r}; round all scores to float32 first, which may change ids"
            )
    return scores


def _types(pipeline: Pipeline, model: Unigram | SentencePieceBPE) -> dict[int, PieceType]:
    """Return the types of bytes and of the unknown piece.

    Raises:
        TokenizerError: a piece that no text becomes is neither of these nor a special token.
    """
    types = dict.fromkeys(byte_ids(model.vocab) if model.byte_fallback else (), PieceType.BYTE)
    never = {*types, *(token.id for token in pipeline.added_tokens if token.special)}
    for added in pipeline.added_tokens:
        if not added.special:
            raise TokenizerError(
                f"added token {added.content!r} is not special, and llama.cpp would treat the text "
                "beside it as a new one; make it special"
            )
    for token, (piece, _) in enumerate(model.pieces):
        if (token in never) != (token in model.unmatched):
            problem = "no text becomes it" if token in model.unmatched else "text may become it"
            raise TokenizerError(
                f"token {piece!r} is {'' if token in never else 'not '}special or a byte but "
                f"{problem}, which a GGUF file cannot say; change one of the two"
            )
    if model.unk_id is not None:
        types[model.unk_id] = PieceType.UNKNOWN
    return types
