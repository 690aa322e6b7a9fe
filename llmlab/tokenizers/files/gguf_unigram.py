"""Unigram in a GGUF file, which calls it `t5`.

llama.cpp applies a character map, puts a space before the text if it is told to, drops extra
spaces, and finds the best segmentation of the whole text. Ids are the same as here, but for what
llama.cpp does in another way:

* It has no byte fallback: a character without a piece, or a run of them, is the unknown token.
* It adds up scores in float64, SentencePiece in float32 (`Unigram.single_precision`), so that of
  segmentations that are equally good, or nearly so, each may take another one.
* In a text of nothing but spaces it puts no space before, unless extra spaces are dropped.
* Where extra spaces are dropped it leaves U+2581 at the end of a text.
* A user-defined piece may change together with a mark behind it, such as `>` and U+0338.
"""

from dataclasses import replace

import numpy as np

from llmlab.errors import TokenizerError
from llmlab.tokenizers.charsmap import CharsMap, charsmap_rules
from llmlab.tokenizers.cuts import CUTS
from llmlab.tokenizers.decoders import SPACE_MARK
from llmlab.tokenizers.files.gguf_pieces import piece_metadata, pieces_pipeline, read_pieces
from llmlab.tokenizers.files.gguf_tokens import GgufTokens, check_eos
from llmlab.tokenizers.files.gguf_writer import Value
from llmlab.tokenizers.files.sentencepiece_model import NormalizerSpec, Piece, PieceType
from llmlab.tokenizers.models.unigram import Unigram
from llmlab.tokenizers.normalizers import Replace
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
        **piece_metadata(tokenizer, pipeline, model, rules, user_defined=PieceType.NORMAL),
        "llmlab.tokenizer.cut": pipeline.split.name,
        "llmlab.tokenizer.is_sentencepiece": rules in pipeline.normalizers,
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
    spec = NormalizerSpec(
        charsmap=np.asarray(tokens.get("precompiled_charsmap", ()), np.uint8).tobytes(),
        add_dummy_prefix=bool(tokens.get("add_space_prefix", False)),
        remove_extra_whitespaces=bool(tokens.get("remove_extra_whitespaces", False)),
    )
    pieces = _with_user_defined(read_pieces(tokens), tokens)
    pipeline = pieces_pipeline(tokens, pieces, spec, model_type="unigram")
    if tokens.said("is_sentencepiece", True):
        return pipeline
    assert isinstance(pipeline.model, Unigram)
    return replace(
        pipeline,
        normalizers=(_MARKS_ONLY,),
        split=CUTS[tokens.said("cut")],
        model=replace(pipeline.model, single_precision=False),
    )


def _with_user_defined(pieces: tuple[Piece, ...], tokens: GgufTokens) -> tuple[Piece, ...]:
    """Give user-defined pieces back the type and score that `_user_defined` took."""
    scores = np.asarray(tokens.said("user_defined_scores", ())).tolist()
    ids = np.asarray(tokens.said("user_defined", ())).tolist()
    found = dict(zip(ids, scores, strict=True))
    return tuple(
        Piece(piece.text, found[at], PieceType.USER_DEFINED) if at in found else piece
        for at, piece in enumerate(pieces)
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
    steps, cut = pipeline.normalizers, pipeline.split
    if steps == (_MARKS_ONLY,) and cut in (CUTS["marks"], CUTS["whole"]):
        return _NO_RULES
    rules = steps[0] if len(steps) == 1 else None
    if not isinstance(rules, SentencePieceRules) or cut != CUTS["whole"]:
        names = ", ".join(type(step).__name__ for step in steps) or "none"
        raise TokenizerError(
            f"Unigram with normalizers {names} and the cut {cut.name!r} is none that "
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
    found = CharsMap(charsmap_rules(rules.charsmap) if rules.charsmap and user_defined else {})
    for piece in user_defined:
        if " " in piece or SPACE_MARK in piece or found.apply(piece) != piece:
            raise TokenizerError(
                f"user-defined piece {piece!r} is not normalised by SentencePiece, but it is by "
                "llama.cpp; train the model without it"
            )
