"""WordPiece in a GGUF file, which calls it `bert`.

llama.cpp writes a token that starts a word with U+2581 in front and one that goes on without its
`##`. Where special tokens are asked for it puts one before and one after every text, whatever the
file says; a tokenizer that puts nothing there gets its eos_token on both sides. Without special
tokens ids are the same, but for what llama.cpp does in another way:

* A word may have any length; here one of more than `max_chars` is unknown.
* U+000B, U+000C and U+0085 are white space; BERT drops them.
* U+2581 in the text is taken for the start of a word.
* Its Unicode tables are newer than those that BERT's tokenizers have: punctuation that came after
  Unicode 8 is cut off and format characters are dropped, 149 rare characters.
* Where accents are stripped it drops all marks, BERT only the nonspacing ones it knows; so the
  vowel signs of Indic scripts go. Of a character that decomposes into several that are no marks
  it keeps the first: of a Hangul syllable the leading consonant.

Older versions of llama.cpp fold case and strip accents whatever the file says.
"""

from functools import partial

from llmlab.errors import TokenizerError
from llmlab.tokenizers.bert import Bert
from llmlab.tokenizers.cuts import CUTS
from llmlab.tokenizers.decoders import SPACE_MARK, WordPieceDecoder
from llmlab.tokenizers.files.gguf_tokens import GgufTokens, role_metadata, token_metadata
from llmlab.tokenizers.files.gguf_writer import Value
from llmlab.tokenizers.files.sentencepiece_model import PieceType
from llmlab.tokenizers.models.wordpiece import WordPiece
from llmlab.tokenizers.pipeline import Pipeline
from llmlab.tokenizers.tokenizer import Tokenizer

_SEPARATOR = "seperator"  # codespell:ignore seperator
"""How GGUF spells the role of what follows a text."""


def wordpiece_metadata(
    tokenizer: Tokenizer, pipeline: Pipeline, model: WordPiece
) -> dict[str, Value]:
    """Return the keys of a WordPiece vocabulary.

    Raises:
        TokenizerError: llama.cpp cannot make the same ids; the message says why.
    """
    bert = _checked_bert(pipeline)
    _check_spelling(pipeline, model)
    unknown_id = model.vocab[model.unknown_token]
    is_special = model.unknown_token in tokenizer.special_tokens
    metadata: dict[str, Value] = {
        "tokenizer.ggml.model": "bert",
        **token_metadata(
            pipeline,
            tokenizer.vocab_size,
            spell=partial(_spelled, model.prefix),
            types={unknown_id: PieceType.UNKNOWN} if is_special else {},
        ),
        "tokenizer.ggml.normalizer.lowercase": bert.lowercase,
        **role_metadata(tokenizer, pipeline, unknown_id=unknown_id),
        **_ends(tokenizer, pipeline),
        "llmlab.tokenizer.prefix": model.prefix,
        "llmlab.tokenizer.max_word_chars": model.max_chars,
    }
    if bert.strip_accents is not None:
        metadata["tokenizer.ggml.normalizer.strip_accents"] = bert.strip_accents
    if isinstance(pipeline.decoder, WordPieceDecoder):
        metadata["llmlab.tokenizer.cleanup"] = pipeline.decoder.cleanup
    if "[MASK]" in tokenizer.special_tokens:
        metadata["tokenizer.ggml.mask_token_id"] = tokenizer.special_tokens["[MASK]"]
    return metadata


def wordpiece_pipeline(tokens: GgufTokens) -> Pipeline:
    """Build the pipeline of a WordPiece vocabulary.

    Raises:
        TokenizerError: the file has no unknown token, or is damaged.
    """
    prefix = str(tokens.said("prefix", "##"))
    added = tokens.added_tokens(user_defined=True)
    as_they_are = {token.id for token in added}
    vocab = {
        text if at in as_they_are else _respelled(prefix, text): at
        for at, text in ((at, tokens.texts[at]) for at in tokens.model_ids())
    }
    unknown = tokens.id_of("unknown")
    names = {token_id: token for token, token_id in vocab.items()}
    unknown_token = "[UNK]" if unknown is None else names.get(unknown, tokens.texts[unknown])
    return Pipeline(
        added_tokens=added,
        normalizers=(
            Bert(
                lowercase=bool(tokens.get("normalizer.lowercase", True)),
                strip_accents=tokens.get("normalizer.strip_accents"),
            ),
        ),
        split=CUTS["bert"],
        model=WordPiece(vocab, unknown_token, prefix, int(tokens.said("max_word_chars", 100))),
        decoder=WordPieceDecoder(prefix, cleanup=bool(tokens.said("cleanup", True))),
        bos_tokens=tokens.beside_text("bos", default=True),
        eos_tokens=tokens.beside_text(_SEPARATOR, default=True),
    )


def _checked_bert(pipeline: Pipeline) -> Bert:
    steps, cut = pipeline.normalizers, pipeline.split
    if len(steps) != 1 or not isinstance(steps[0], Bert) or cut != CUTS["bert"]:
        names = ", ".join(type(step).__name__ for step in steps) or "none"
        raise TokenizerError(
            f"WordPiece with normalizers {names} and the cut {cut.name!r} is none that llama.cpp "
            "knows; it normalises and cuts text as BERT does, so train with algorithm='wordpiece'"
        )
    bert = steps[0]
    for name in ("clean_text", "handle_chinese_chars"):
        if not getattr(bert, name):
            raise TokenizerError(
                f"the normaliser of BERT has {name}=False, and llama.cpp always does that; set it"
            )
    return bert


def _check_spelling(pipeline: Pipeline, model: WordPiece) -> None:
    """Raise when llama.cpp would take a token where WordPiece does not look for it."""
    for token in model.vocab:
        if token.startswith(model.prefix + SPACE_MARK):
            raise TokenizerError(
                f"token {token!r} goes on with U+2581, which in a GGUF file starts a word; remove "
                "U+2581 from the texts to learn from"
            )
    for added in pipeline.added_tokens:
        if added.content.startswith(SPACE_MARK) or CUTS["bert"].pieces(added.content) == [
            added.content
        ]:
            raise TokenizerError(
                f"added token {added.content!r} is a word, and llama.cpp would find it inside of "
                "other words; put it in brackets"
            )


def _spelled(prefix: str, token: str) -> str:
    is_rest = token.startswith(prefix) and token != prefix
    return token.removeprefix(prefix) if is_rest else SPACE_MARK + token


def _respelled(prefix: str, text: str) -> str:
    return text[1:] if text.startswith(SPACE_MARK) else prefix + text


def _ends(tokenizer: Tokenizer, pipeline: Pipeline) -> dict[str, Value]:
    """Return what llama.cpp puts around a text where special tokens are asked for."""
    if bool(pipeline.bos_tokens) != bool(pipeline.eos_tokens):
        raise TokenizerError(
            f"a text has {pipeline.bos_tokens} before and {pipeline.eos_tokens} after it, and "
            "llama.cpp puts a token on both sides of a text for BERT; set both or none"
        )
    special, fallback = tokenizer.special_tokens, tokenizer.eos_token_id
    ids = {**special, **pipeline.vocab}
    first, last = (*pipeline.bos_tokens, "[CLS]")[0], (*pipeline.eos_tokens, "[SEP]")[0]
    bos, separator = ids.get(first, fallback), ids.get(last, fallback)
    if bos is None or separator is None:
        raise TokenizerError(
            "the tokenizer has neither [CLS] and [SEP] nor an eos_token, and llama.cpp would put "
            "ids 101 and 102 around a text; give eos_token"
        )
    return {
        "tokenizer.ggml.bos_token_id": bos,
        f"tokenizer.ggml.{_SEPARATOR}_token_id": separator,
        "tokenizer.ggml.add_sep_token": bool(pipeline.eos_tokens),
    }
