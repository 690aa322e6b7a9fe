"""Unigram in a GGUF file, which calls it `t5`.

llama.cpp applies a character map, puts a space before the text if it is told to, drops extra
spaces, and finds the best segmentation of the whole text. Ids are the same as here, with these
exceptions:

EXCEPTIONS
"""

import numpy as np

from llmlab.errors import TokenizerError
from llmlab.tokenizers.charsmap import charsmap_rules
from llmlab.tokenizers.cuts import CUTS
from llmlab.tokenizers.decoders import SPACE_MARK, SentencePieceDecoder
from llmlab.tokenizers.files.gguf_tokens import (
    GgufTokens,
    check_eos,
    exact_scores,
    piece_types,
    role_metadata,
    token_metadata,
)
from llmlab.tokenizers.files.gguf_writer import Value
from llmlab.tokenizers.files.sentencepiece_model import PieceType
from llmlab.tokenizers.models.unigram import Unigram
from llmlab.tokenizers.normalizers import Normalizer, Replace
from llmlab.tokenizers.pipeline import Pipeline
from llmlab.tokenizers.sentencepiece_rules import SentencePieceRules
from llmlab.tokenizers.tokenizer import Tokenizer

_MARKS_ONLY = Replace(" ", SPACE_MARK)

_NO_RULES = SentencePieceRules(add_dummy_prefix=False, remove_extra_whitespaces=False)
"""What SentencePiece calls that."""


def unigram_metadata(tokenizer: Tokenizer, pipeline: Pipeline, model: Unigram) -> dict[str, Value]:
    """Return the keys of a Unigram vocabulary.

    Raises:
        TokenizerError: llama.cpp cannot make the same ids; the message says why.
    """
    rules = _checked_rules(pipeline)
    check_eos(tokenizer, default=1)
    _check_pieces(pipeline, model, rules)
    size = tokenizer.vocab_size
    if gaps := set(range(len(model.pieces), size)) - {token.id for token in pipeline.added_tokens}:
        raise TokenizerError(
            f"id {min(gaps)} has no token, and llama.cpp would find the name it gets in text; "
            "number the tokens without gaps"
        )
    metadata: dict[str, Value] = {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.pre": "default",
        **token_metadata(pipeline, size, types=piece_types(pipeline, model)),
        "tokenizer.ggml.scores": exact_scores(model.pieces, size),
        "tokenizer.ggml.add_space_prefix": rules.add_dummy_prefix,
        "tokenizer.ggml.remove_extra_whitespaces": rules.remove_extra_whitespaces,
        **role_metadata(tokenizer, pipeline, unknown_id=model.unk_id),
        "llmlab.tokenizer.cut": pipeline.split.name,
        "llmlab.tokenizer.is_sentencepiece": rules in pipeline.normalizers,
        "llmlab.tokenizer.single_precision": model.single_precision,
        "llmlab.tokenizer.num_pieces": len(model.pieces),
    }
    if rules.charsmap:
        charsmap = np.frombuffer(rules.charsmap, np.uint8)
        metadata["tokenizer.ggml.precompiled_charsmap"] = charsmap
    return metadata | _user_defined(model, metadata)


def unigram_pipeline(tokens: GgufTokens) -> Pipeline:
    """Build the pipeline of a Unigram vocabulary; llama.cpp puts EOS last unless told not to.

    Raises:
        TokenizerError: the file is damaged.
    """
    prefix = bool(tokens.get("add_space_prefix", False))
    model = _read_model(tokens)
    rules = SentencePieceRules(
        charsmap=np.asarray(tokens.get("precompiled_charsmap", ()), np.uint8).tobytes(),
        add_dummy_prefix=prefix,
        remove_extra_whitespaces=bool(tokens.get("remove_extra_whitespaces", False)),
        kept=tuple(model.pieces[at][0] for at in sorted(model.user_defined)),
    )
    rules.apply("")  # a damaged character map shows now, not with the first text
    step: Normalizer = rules if tokens.said("is_sentencepiece", True) else _MARKS_ONLY
    return Pipeline(
        added_tokens=tokens.added_tokens(user_defined=False),
        normalizers=(step,),
        split=CUTS[tokens.said("cut", "whole")],
        model=model,
        decoder=SentencePieceDecoder(strip_first_space=prefix),
        **tokens.around(adds_bos=False, adds_eos=True),
    )


def _read_model(tokens: GgufTokens) -> Unigram:
    pieces = list(tokens.pieces())
    named = np.asarray(tokens.said("user_defined", ())).tolist()
    for token, score in zip(named, tokens.said("user_defined_scores", ()), strict=True):
        pieces[token] = pieces[token][0], float(score)
    types = (PieceType.CONTROL, PieceType.UNKNOWN, PieceType.BYTE, PieceType.UNUSED)
    return Unigram(
        pieces=tuple(pieces),
        unk_id=tokens.id_of("unknown"),
        byte_fallback=bool(tokens.of_type(PieceType.BYTE)),
        user_defined=frozenset([*named, *tokens.of_type(PieceType.USER_DEFINED)]),
        unmatched=frozenset(at for at in tokens.of_type(*types) if at < len(pieces)),
        single_precision=bool(tokens.said("single_precision", True)),
    )


def _user_defined(model: Unigram, metadata: dict[str, Value]) -> dict[str, Value]:
    """Return the scores by which user-defined pieces win, and those that the model has for them.

    As `user-defined` llama.cpp would part the text at them and not normalise what begins as one
    of them does; as ordinary pieces with these scores it finds them as SentencePiece does.
    """
    ids = sorted(model.user_defined)
    if not ids:
        return {}
    scores = np.array(metadata["tokenizer.ggml.scores"])
    winning = model.scores
    changed = scores.copy()
    changed[ids] = [winning[token] for token in ids]
    return {
        "tokenizer.ggml.scores": changed,
        "llmlab.tokenizer.user_defined": np.array(ids, np.int32),
        "llmlab.tokenizer.user_defined_scores": scores[ids],
    }


def _checked_rules(pipeline: Pipeline) -> SentencePieceRules:
    steps = pipeline.normalizers
    rules = _NO_RULES if steps == (_MARKS_ONLY,) else steps[0] if len(steps) == 1 else None
    if not isinstance(rules, SentencePieceRules) or pipeline.split.name not in ("whole", "marks"):
        names = ", ".join(type(step).__name__ for step in steps) or "none"
        raise TokenizerError(
            f"Unigram with normalizers {names} and the cut {pipeline.split.name!r} is none that "
            "llama.cpp knows; train with algorithm='unigram' or load a SentencePiece .model file"
        )
    if not rules.escape_whitespaces:
        raise TokenizerError(
            "the model has escape_whitespaces=False, and llama.cpp always writes U+2581 for a "
            "space; train it with escape_whitespaces=true"
        )
    if rules.remove_extra_whitespaces and not rules.add_dummy_prefix:
        raise TokenizerError(
            "the model has remove_extra_whitespaces=True and add_dummy_prefix=False, and llama.cpp "
            "would put a space before the text nevertheless; train it with another of the two"
        )
    return rules


def _check_pieces(pipeline: Pipeline, model: Unigram, rules: SentencePieceRules) -> None:
    if model.unk_id is None:
        raise TokenizerError(
            "the model has no unknown piece, and llama.cpp would take id 2 for it; add one"
        )
    for piece, _ in model.pieces:
        if pipeline.split.name == "marks" and SPACE_MARK in piece[1:]:
            raise TokenizerError(
                f"piece {piece!r} goes beyond a space, and llama.cpp would use it, though the text "
                "is cut there; remove it"
            )
    user_defined = [model.pieces[token][0] for token in sorted(model.user_defined)]
    found = charsmap_rules(rules.charsmap) if rules.charsmap and user_defined else {}
    for piece in user_defined:
        if " " in piece or SPACE_MARK in piece or any(_touches(rule, piece) for rule in found):
            raise TokenizerError(
                f"user-defined piece {piece!r} is not normalised by SentencePiece, but it is by "
                "llama.cpp; train the model without it"
            )


def _touches(rule: str, piece: str) -> bool:
    """Return whether replacing the text `rule` may change a piece or an end of it."""
    return (
        rule in piece
        or piece in rule
        or any(
            piece.startswith(rule[-end:]) or piece.endswith(rule[:end])
            for end in range(1, len(rule))
        )
    )
