"""The tokenizer inside a GGUF file: byte-level BPE, its way of cutting text, its special tokens.

Not here: how it encodes (llmlab/tokenizers). llama.cpp calls byte-level BPE `gpt2` and names the
expression that cuts text in `tokenizer.ggml.pre`; models with another tokenizer (SentencePiece is
called `llama`, WordPiece `bert`) are refused by name. What a GGUF does not say is taken from the
published tokenizers: Qwen normalises to NFC, Llama 3 takes whole words from the vocabulary before
it merges and starts every text with BOS unless the file says otherwise. Files written here say it
themselves (`llmlab.tokenizer.*`, see llmlab/tokenizers/files/gguf_vocab.py).
"""

from typing import Any, Literal

from llmlab.errors import ModelError, TokenizerError
from llmlab.model.gguf import GgufFile
from llmlab.tokenizers import Tokenizer
from llmlab.tokenizers.files.gguf_vocab import CONTROL, UNUSED, USER_DEFINED
from llmlab.tokenizers.splits import Split, split_of_gguf

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


def gguf_tokenizer(file: GgufFile) -> Tokenizer:
    """Build the tokenizer a GGUF file holds.

    Raises:
        ModelError: the file has no byte-level BPE tokenizer, or a damaged one.
    """
    kind = file.metadata.get("tokenizer.ggml.model", "none")
    if kind != "gpt2":
        raise ModelError(
            f"{file.path} has the tokenizer model {kind!r}; only byte-level BPE, which GGUF calls "
            "'gpt2', is read"
        )
    tokens: list[str] = _list(file, "tokens")
    types = _types(file, len(tokens))
    try:
        split = _split(file)
        return Tokenizer.from_vocab(
            {token: at for at, token in enumerate(tokens) if types[at] != UNUSED},
            _list(file, "merges"),
            split=split.name,
            special_tokens=[token for at, token in enumerate(tokens) if types[at] == CONTROL],
            added_tokens=[token for at, token in enumerate(tokens) if types[at] == USER_DEFINED],
            bos_token=_token(file, "bos", tokens),
            eos_token=_token(file, "eos", tokens),
            pad_token=_token(file, "padding", tokens),
            unk_token=_token(file, "unknown", tokens),
            add_bos=_adds_bos(file, split),
            normalizer=_normalizer(file, split),
            ignore_merges=bool(
                file.metadata.get("llmlab.tokenizer.ignore_merges", split.name == "llama3")
            ),
            chat_template=file.metadata.get("tokenizer.chat_template"),
        )
    except TokenizerError as error:
        raise ModelError(f"{file.path}: {error}") from error


def _split(file: GgufFile) -> Split:
    pre = str(file.metadata.get("tokenizer.ggml.pre", "default"))
    return split_of_gguf(_SAME_SPLIT.get(pre, pre))


def _normalizer(file: GgufFile, split: Split) -> Literal["NFC"] | None:
    known = file.metadata.get("llmlab.tokenizer.normalizer")
    if known is None:
        known = "NFC" if split.name == "qwen2" else "none"
    return "NFC" if known == "NFC" else None


def _adds_bos(file: GgufFile, split: Split) -> bool:
    adds = file.metadata.get("tokenizer.ggml.add_bos_token", split.name == "llama3")
    return bool(adds) and "tokenizer.ggml.bos_token_id" in file.metadata


def _list(file: GgufFile, name: str) -> list[str]:
    value = file.metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ModelError(f"{file.path} has no list tokenizer.ggml.{name}; the file is incomplete")
    return value


def _types(file: GgufFile, num_tokens: int) -> Any:
    types = file.metadata.get("tokenizer.ggml.token_type")
    if types is None or len(types) != num_tokens:
        raise ModelError(
            f"{file.path}: tokenizer.ggml.token_type has {0 if types is None else len(types)} "
            f"entries for {num_tokens} tokens; the file is damaged"
        )
    return types


def _token(file: GgufFile, role: str, tokens: list[str]) -> str | None:
    number = file.metadata.get(f"tokenizer.ggml.{role}_token_id")
    if number is None:
        return None
    if not isinstance(number, int) or not 0 <= number < len(tokens):
        raise ModelError(
            f"{file.path}: tokenizer.ggml.{role}_token_id={number} is outside the vocabulary of "
            f"{len(tokens)}; the file is damaged"
        )
    return tokens[number]
