"""Byte-level BPE in a GGUF file, which calls it `gpt2`.

With the tokens stands the name under which llama.cpp knows the way text is cut
(`tokenizer.ggml.pre`). What such a file cannot say is refused with the reason, with one exception:
llama.cpp brings no text into a Unicode form, so a tokenizer with NFC (Qwen) gets other ids there
for text that is not NFC already, as the published files of these models do.

llama.cpp cuts text by its own rewriting of each expression. With `gpt-4o` (o200k) that is not the
same: combining marks are no part of a word there, and only a-z and A-Z have a case. Letters and
digits newer than its Unicode tables are cut differently with every name.

What a published file does not say is taken from the tokenizers of these models: Qwen normalises to
NFC, Llama 3 takes whole words from the vocabulary before it merges and starts every text with BOS
unless the file says otherwise.
"""

from llmlab.errors import TokenizerError
from llmlab.tokenizers.alphabet import CHARS, unspell
from llmlab.tokenizers.decoders import ByteLevelDecoder
from llmlab.tokenizers.files.gguf_tokens import (
    GgufTokens,
    check_eos,
    role_metadata,
    token_metadata,
)
from llmlab.tokenizers.files.gguf_writer import Value
from llmlab.tokenizers.models.bpe import BPE, ByteLevelBPE
from llmlab.tokenizers.normalizers import normalizer_component
from llmlab.tokenizers.pipeline import Pipeline
from llmlab.tokenizers.splits import Split, split_of_gguf
from llmlab.tokenizers.tokenizer import Tokenizer
from llmlab.tokenizers.unicode_forms import UnicodeForm

_TAKES_WHOLE_WORDS = frozenset(["llama-bpe"])
"""`pre` names for which llama.cpp takes a pre-token that is a token at once (`ignore_merges`)."""

_SAME_SPLIT = {
    "deepseek-r1-qwen": "qwen2",
    "llama-v3": "llama-bpe",
    "llama3": "llama-bpe",
    "mpt": "gpt-2",
    "olmo": "gpt-2",
    "phi-2": "gpt-2",
    "refact": "smollm",
    "starcoder": "smollm",
}
"""Other names under which llama.cpp cuts by the same expression."""


def byte_level_metadata(
    tokenizer: Tokenizer, pipeline: Pipeline, model: ByteLevelBPE
) -> dict[str, Value]:
    """Return the keys of a byte-level BPE.

    Raises:
        TokenizerError: llama.cpp cannot make the same ids; the message says why.
    """
    pre = _checked_pre(tokenizer, pipeline, model)
    steps = normalizer_component(pipeline.normalizers) or {"type": "none"}
    unknown_id = tokenizer.special_tokens.get(model.unknown_token or "")
    metadata: dict[str, Value] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        **token_metadata(pipeline, tokenizer.vocab_size),
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in model.merges],
        "tokenizer.ggml.add_space_prefix": False,
        "llmlab.tokenizer.normalizer": steps["type"],
        "llmlab.tokenizer.ignore_merges": model.ignore_merges,
        **role_metadata(tokenizer, pipeline, unknown_id=unknown_id),
    }
    if model.unknown_token is not None:
        metadata["llmlab.tokenizer.unknown_token"] = model.unknown_token
    return metadata


def byte_level_pipeline(tokens: GgufTokens) -> Pipeline:
    """Build the pipeline of a byte-level BPE.

    Raises:
        TokenizerError: the way text is cut is not known, or the file is damaged.
    """
    pre = str(tokens.get("pre", "default"))
    split = split_of_gguf(_SAME_SPLIT.get(pre, pre))
    form = tokens.said("normalizer", "NFC" if split.name == "qwen2" else "none")
    model = ByteLevelBPE(
        vocab={tokens.texts[at]: at for at in tokens.model_ids()},
        merges=tuple(_pair(merge) for merge in tokens.text_list("merges")),
        ignore_merges=bool(tokens.said("ignore_merges", split.name == "llama3")),
        unknown_token=tokens.said("unknown_token"),
    )
    return Pipeline(
        added_tokens=tokens.added_tokens(user_defined=True),
        normalizers=(UnicodeForm("NFC"),) if form == "NFC" else (),
        split=split,
        model=model,
        decoder=ByteLevelDecoder(),
        bos_tokens=tokens.beside_text("bos", default=split.name == "llama3"),
        eos_tokens=tokens.beside_text("eos", default=False),
    )


def _pair(merge: str) -> tuple[str, str]:
    left, space, right = merge.partition(" ")
    if not (left and space and right):
        raise TokenizerError(f"merge {merge!r} is not two tokens; the file is damaged")
    return left, right


def _checked_pre(tokenizer: Tokenizer, pipeline: Pipeline, model: ByteLevelBPE) -> str:
    """Return llama.cpp's name of the split, once it is sure that its ids are the same."""
    split = pipeline.split
    if not isinstance(split, Split) or split.gguf_pre is None:
        raise TokenizerError(
            f"split={split.name!r} has no name in llama.cpp, so no GGUF file can say how text is "
            "cut; train with split='qwen2', 'llama3', 'gpt2', 'smollm' or 'o200k'"
        )
    if pipeline.normalizers not in ((), (UnicodeForm("NFC"),)):
        names = ", ".join(type(step).__name__ for step in pipeline.normalizers)
        raise TokenizerError(
            f"normalizers {names} change the text, and llama.cpp changes none before byte-level "
            "BPE; remove them"
        )
    check_eos(tokenizer, default=11)
    missing = [char for char in CHARS if char not in model.vocab]
    if missing and model.unknown_token is not None:
        raise TokenizerError(
            f"{len(missing)} bytes have no token and become {model.unknown_token!r}, but "
            "llama.cpp drops them; add a token for every byte"
        )
    is_other_way = model.ignore_merges != (split.gguf_pre in _TAKES_WHOLE_WORDS)
    if is_other_way and (unmerged := _first_unmerged(pipeline, model)):
        raise TokenizerError(
            f"token {unmerged!r} is not what its merges make, and with pre={split.gguf_pre!r} "
            f"llama.cpp has ignore_merges={not model.ignore_merges}: its ids would differ; "
            "use a split for which both agree"
        )
    return split.gguf_pre


def _first_unmerged(pipeline: Pipeline, model: ByteLevelBPE) -> str | None:
    """Return a token that is a text but is not reached when that text is merged; mostly None.

    Without one it makes no difference whether whole pre-tokens are looked up before merging.
    """
    bpe = BPE(model.vocab, model.merges, whole_words={})
    added = {token.content for token in pipeline.added_tokens}
    for token, token_id in model.vocab.items():
        if token in added:
            continue
        try:
            text = unspell(token).decode()
        except UnicodeDecodeError:
            continue  # part of a character is never a whole pre-token
        if bpe.encode(text) != [token_id]:
            return token
    return None
