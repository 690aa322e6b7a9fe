"""SentencePiece's BPE in a GGUF file, which calls it `llama`.

llama.cpp puts a space before the text, writes U+2581 for spaces and joins pieces by score. It has
no other normalisation, and writes a character without a piece as its bytes. What that cannot do is
refused with the reason. Ids are the same, with one exception: llama.cpp finds user-defined pieces
before anything else and starts anew behind them, with a space before the text if the tokenizer puts
one there. So in text with such pieces (Mistral's `[REF]`) there is no space before a piece that
comes first, and one more behind each piece. Pieces that are not names in brackets, which ordinary
text may hold, are refused for that.
"""

import re
from functools import cache

from llmlab.errors import TokenizerError
from llmlab.tokenizers.decoders import SPACE_MARK
from llmlab.tokenizers.files.gguf_pieces import piece_metadata, pieces_pipeline, read_pieces
from llmlab.tokenizers.files.gguf_tokens import GgufTokens, check_eos, check_found
from llmlab.tokenizers.files.gguf_writer import Value
from llmlab.tokenizers.files.sentencepiece_model import NormalizerSpec, PieceType
from llmlab.tokenizers.models.sentencepiece_bpe import SentencePieceBPE
from llmlab.tokenizers.pipeline import Pipeline
from llmlab.tokenizers.sentencepiece_rules import SentencePieceRules
from llmlab.tokenizers.tokenizer import Tokenizer

_NAME_IN_BRACKETS = re.compile(r"<[^<>\s▁]+>|\[[^\[\]\s▁]+\]")


def sentencepiece_bpe_metadata(
    tokenizer: Tokenizer, pipeline: Pipeline, model: SentencePieceBPE
) -> dict[str, Value]:
    """Return the keys of a SentencePiece BPE.

    Raises:
        TokenizerError: llama.cpp cannot make the same ids; the message says why.
    """
    rules = _checked_rules(pipeline)
    check_eos(tokenizer, default=2)
    _check_model(model, rules)
    metadata: dict[str, Value] = {
        "tokenizer.ggml.model": "llama",
        **piece_metadata(tokenizer, pipeline, model, rules, user_defined=PieceType.USER_DEFINED),
    }
    special = [token.content for token in pipeline.added_tokens]
    check_found([*special, *(model.pieces[token][0] for token in model.user_defined)])
    _check_joined(model, set(special))
    return metadata


def sentencepiece_bpe_pipeline(tokens: GgufTokens) -> Pipeline:
    """Build the pipeline of a SentencePiece BPE; llama.cpp puts BOS first unless it is told not to.

    Raises:
        TokenizerError: the file is damaged.
    """
    spec = NormalizerSpec(
        add_dummy_prefix=bool(tokens.get("add_space_prefix", True)),
        remove_extra_whitespaces=False,
    )
    return pieces_pipeline(tokens, read_pieces(tokens), spec, model_type="bpe")


def _checked_rules(pipeline: Pipeline) -> SentencePieceRules:
    steps = pipeline.normalizers
    if len(steps) != 1 or not isinstance(steps[0], SentencePieceRules):
        names = ", ".join(type(step).__name__ for step in steps) or "none"
        raise TokenizerError(
            f"SentencePiece's BPE with normalizers {names} is none that llama.cpp knows; load the "
            "tokenizer from its .model file"
        )
    rules = steps[0]
    for name, wanted in (("remove_extra_whitespaces", False), ("escape_whitespaces", True)):
        if getattr(rules, name) != wanted:
            raise TokenizerError(
                f"the model has {name}={not wanted}, which llama.cpp does not do for BPE; train "
                f"it with {name}={wanted}"
            )
    if rules.charsmap:
        raise TokenizerError(
            f"the model has a character map of {len(rules.charsmap)} bytes, which llama.cpp does "
            "not apply for BPE; train it with normalization_rule_name='identity'"
        )
    return rules


def _check_model(model: SentencePieceBPE, rules: SentencePieceRules) -> None:
    if not model.byte_fallback:
        raise TokenizerError(
            "the model has no byte_fallback, and llama.cpp knows nothing else for a character "
            "without a piece; train the SentencePiece model with byte_fallback=true"
        )
    if model.unused:
        unused = model.pieces[min(model.unused)][0]
        raise TokenizerError(
            f"{len(model.unused)} pieces are of the type unused, {unused!r} first, and llama.cpp "
            "would use them; take them out of the .model file"
        )
    for token in sorted(model.user_defined):
        piece = model.pieces[token][0]
        if SPACE_MARK in piece or " " in piece:
            raise TokenizerError(
                f"user-defined piece {piece!r} has a space, and llama.cpp looks for U+2581 there; "
                "train the model without it"
            )
        if rules.add_dummy_prefix and not _NAME_IN_BRACKETS.fullmatch(piece):
            raise TokenizerError(
                f"user-defined piece {piece!r} may stand in ordinary text, and llama.cpp would put "
                "a space behind it; train the model with add_dummy_prefix=false"
            )


def _check_joined(model: SentencePieceBPE, special: set[str]) -> None:
    """Raise when joining makes a piece that no text may become; llama.cpp takes any piece."""
    never = special | {model.pieces[token][0] for token in model.unmatched}
    known = never | model.vocab.keys()

    @cache
    def is_joined(text: str) -> bool:
        return len(text) == 1 or any(
            left in known and right in known and is_joined(left) and is_joined(right)
            for left, right in ((text[:at], text[at:]) for at in range(1, len(text)))
        )

    for piece in sorted(never):
        if is_joined(piece):
            raise TokenizerError(
                f"{piece!r} is special or a byte, and llama.cpp would make it of plain text, as "
                "other pieces join to it; rename it"
            )
