"""A tokenizer as the metadata of a GGUF file, so that llama.cpp makes the same ids.

Written is byte-level BPE, which GGUF calls `gpt2`, with the name under which llama.cpp knows the
way text is cut (`tokenizer.ggml.pre`). What such a file cannot say is refused with the reason, with
one exception: llama.cpp brings no text into a Unicode form, so a tokenizer with NFC (Qwen) gets
other ids there for text that is not NFC already, as the published files of these models do.

llama.cpp cuts text by its own rewriting of each expression. With `gpt-4o` (o200k) that is not the
same: combining marks are no part of a word there, and only a-z and A-Z have a case. Letters and
digits newer than its Unicode tables are cut differently with every name.

The keys `llmlab.tokenizer.*` say what the format has no key for; llama.cpp passes over them.

Not here: the format of the file (gguf_writer.py), the way back (llmlab/model/gguf_tokenizer.py).
Source: the GGUF specification (github.com/ggml-org/ggml, docs/gguf.md) and what llama.cpp reads.
"""

from pathlib import Path

import numpy as np

from llmlab.errors import TokenizerError
from llmlab.tokenizers.alphabet import unspell
from llmlab.tokenizers.files.gguf_writer import Value, write_gguf
from llmlab.tokenizers.models.bpe import BPE, ByteLevelBPE
from llmlab.tokenizers.normalizers import normalizer_component
from llmlab.tokenizers.pipeline import Pipeline
from llmlab.tokenizers.splits import Split
from llmlab.tokenizers.tokenizer import Tokenizer

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""`tokenizer.ggml.token_type`: ordinary, special, matched whole but ordinary, an id without a
token."""

_TAKES_WHOLE_WORDS = frozenset(["llama-bpe"])
"""`pre` names for which llama.cpp takes a pre-token that is a token at once (`ignore_merges`)."""

_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>")


def gguf_metadata(tokenizer: Tokenizer) -> dict[str, Value]:
    """Return the `tokenizer.*` keys of a GGUF file.

    Raises:
        TokenizerError: llama.cpp cannot make the same ids; the message says why.
    """
    pipeline, model = _byte_level(tokenizer)
    pre = _checked_pre(tokenizer)
    steps = normalizer_component(pipeline.normalizers) or {"type": "none"}
    tokens, types = _tokens(pipeline, tokenizer.vocab_size)
    metadata: dict[str, Value] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in model.merges],
        "tokenizer.ggml.add_bos_token": bool(tokenizer.bos_ids),
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
        "llmlab.tokenizer.normalizer": steps["type"],
        "llmlab.tokenizer.ignore_merges": model.ignore_merges,
    }
    metadata |= {
        f"tokenizer.ggml.{role}_token_id": token for role, token in _special_ids(tokenizer).items()
    }
    if tokenizer.chat_template is not None:
        metadata["tokenizer.chat_template"] = tokenizer.chat_template
    return metadata


def write_vocab_gguf(tokenizer: Tokenizer, path: Path | str) -> None:
    """Write a GGUF file that holds a tokenizer and no model, whole or not at all.

    llama.cpp loads it with `vocab_only`.

    Raises:
        TokenizerError: as `gguf_metadata`.
        OutputError: the file cannot be written.
    """
    general: dict[str, Value] = {"general.architecture": "llama", "general.type": "model"}
    write_gguf(path, general | gguf_metadata(tokenizer))


def _byte_level(tokenizer: Tokenizer) -> tuple[Pipeline, ByteLevelBPE]:
    pipeline = tokenizer.pipeline
    if not isinstance(pipeline, Pipeline) or not isinstance(pipeline.model, ByteLevelBPE):
        raise TokenizerError(
            "only byte-level BPE is written to GGUF; this tokenizer has another algorithm, train "
            "one with algorithm='bpe'"
        )
    return pipeline, pipeline.model


def _tokens(pipeline: Pipeline, vocab_size: int) -> tuple[list[str], np.ndarray]:
    """Return the tokens by id and their types, int32; an id without a token gets a name."""
    tokens = [f"[PAD{token_id}]" for token_id in range(vocab_size)]
    types = np.full(vocab_size, UNUSED, np.int32)
    for token, token_id in pipeline.vocab.items():
        tokens[token_id], types[token_id] = token, NORMAL
    for added in pipeline.added_tokens:
        tokens[added.id] = added.content
        types[added.id] = CONTROL if added.special else USER_DEFINED
    if len(set(tokens)) < vocab_size:
        twice = next(token for token in tokens if tokens.count(token) > 1)
        raise TokenizerError(
            f"token {twice!r} would stand twice in the GGUF file, which llama.cpp refuses; "
            "rename the special token"
        )
    return tokens, types


def _special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    special = tokenizer.special_tokens
    roles = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "eot": next((special[token] for token in _TURN_ENDS if token in special), None),
        "padding": tokenizer.pad_token_id,
        "unknown": special.get(_byte_level(tokenizer)[1].unknown_token or ""),
    }
    return {role: token_id for role, token_id in roles.items() if token_id is not None}


def _checked_pre(tokenizer: Tokenizer) -> str:
    """Return llama.cpp's name of the split, once it is sure that its ids are the same."""
    pipeline, model = _byte_level(tokenizer)
    split = pipeline.split
    if not isinstance(split, Split) or split.gguf_pre is None:
        raise TokenizerError(
            f"split={split.name!r} has no name in llama.cpp, so no GGUF file can say how text is "
            "cut; train with split='qwen2', 'llama3', 'gpt2', 'smollm' or 'o200k'"
        )
    if tokenizer.eos_token_id is None:
        raise TokenizerError(
            "the tokenizer has no eos_token, and llama.cpp would then end a text at id 11; "
            "give eos_token"
        )
    for added in pipeline.added_tokens:
        if added.lstrip or added.rstrip:
            raise TokenizerError(
                f"added token {added.content!r} takes the white space beside it (lstrip or "
                "rstrip), which a GGUF file cannot say; switch that off"
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
