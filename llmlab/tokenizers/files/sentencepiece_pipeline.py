"""The pipeline that does what a SentencePiece model file says.

Ids are SentencePiece's own, also after saving as a tokenizer folder and loading again. What
`tokenizers` makes of that folder is the same but for user-defined pieces, for texts between
special tokens, which it prefixes one by one, and for ties that only float32 sums decide.
"""

from llmlab.tokenizers.added_tokens import AddedToken
from llmlab.tokenizers.cuts import CUTS, Cut
from llmlab.tokenizers.decoders import SPACE_MARK, SentencePieceDecoder
from llmlab.tokenizers.files.sentencepiece_model import PieceType, SentencePieceModel
from llmlab.tokenizers.models.sentencepiece_bpe import SentencePieceBPE
from llmlab.tokenizers.models.unigram import Unigram
from llmlab.tokenizers.pipeline import Pipeline
from llmlab.tokenizers.sentencepiece_rules import SentencePieceRules


def sentencepiece_pipeline(model: SentencePieceModel) -> tuple[Pipeline, dict[str, str]]:
    """Return the pipeline of a model, and role to token.

    Control and unknown pieces become special tokens; nothing is put before or after a text.

    Raises:
        UnsupportedPart: it is a word model.
        TokenizerError: the character map is damaged.
    """
    spec = model.normalizer_spec
    user_defined = sorted(model.of_type(PieceType.USER_DEFINED))
    rules = SentencePieceRules(
        charsmap=spec.charsmap,
        add_dummy_prefix=spec.add_dummy_prefix,
        remove_extra_whitespaces=spec.remove_extra_whitespaces,
        escape_whitespaces=spec.escape_whitespaces,
        kept=tuple(model.pieces[at].text for at in user_defined),
    )
    rules.apply("")  # a damaged character map shows now, not with the first text
    cutter = model.model()
    special = sorted(model.of_type(PieceType.CONTROL, PieceType.UNKNOWN))
    pipeline = Pipeline(
        added_tokens=tuple(AddedToken(at, model.pieces[at].text) for at in special),
        normalizers=(rules,),
        split=_cut(cutter),
        model=cutter,
        decoder=SentencePieceDecoder(strip_first_space=spec.add_dummy_prefix),
    )
    roles = {
        "bos_token": model.bos_id,
        "eos_token": model.eos_id,
        "pad_token": model.pad_id,
        "unk_token": model.unk_id,
    }
    return pipeline, {role: model.pieces[at].text for role, at in roles.items() if at is not None}


def _cut(model: Unigram | SentencePieceBPE) -> Cut:
    """Return how text may be cut before merging: at spaces if no piece goes on after one.

    Words are merged alone then and found in a cache. The sums of a Unigram model run over the
    whole text, where they are rounded.
    """
    if isinstance(model, Unigram):
        return CUTS["whole"]
    matched = [
        piece for token, (piece, _) in enumerate(model.pieces) if token not in model.unmatched
    ]
    goes_on = any(SPACE_MARK in piece.lstrip(SPACE_MARK) for piece in matched)
    return CUTS["whole"] if goes_on or SPACE_MARK not in matched else CUTS["mark_runs"]
