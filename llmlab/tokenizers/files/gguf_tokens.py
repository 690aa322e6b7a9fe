"""The tokens of a GGUF file: their texts and types by id, and those with a part to play.

Here stands what every kind of vocabulary has in common, written and read. Not here: what only one
kind has (gguf_vocab.py names the modules).

llama.cpp finds added tokens before it cuts the text, the longest of all first, wherever in the
text it stands; here the leftmost is first. They agree unless one token ends as a longer one begins.
It takes tokens for special that have the name of an end of turn (`<|im_end|>`, `</s>`) or a few
others, whatever their type.

The keys `llmlab.tokenizer.*` say what the format has no key for; llama.cpp passes over them.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from llmlab.errors import TokenizerError
from llmlab.tokenizers.added_tokens import AddedToken
from llmlab.tokenizers.files.folder import ROLES
from llmlab.tokenizers.files.gguf_writer import Value
from llmlab.tokenizers.files.sentencepiece_model import PieceType
from llmlab.tokenizers.pipeline import Pipeline
from llmlab.tokenizers.tokenizer import Tokenizer

_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>")

_ROLE_KEYS = dict(zip(ROLES, ("bos", "eos", "padding", "unknown"), strict=True))


def token_metadata(
    pipeline: Pipeline,
    vocab_size: int,
    *,
    spell: Callable[[str], str] = str,
    types: Mapping[int, PieceType] = MappingProxyType({}),
) -> dict[str, Value]:
    """Return the texts and types of all tokens; an id without a token gets a name.

    Args:
        pipeline: whose tokens they are.
        vocab_size: how many ids there are.
        spell: how a token of the model is written; added tokens are written as they are.
        types: id to type, where it is not the usual one.

    Raises:
        TokenizerError: llama.cpp would refuse the list, or find other added tokens in a text.
    """
    _check_added(pipeline.added_tokens)
    texts = [f"[PAD{token_id}]" for token_id in range(vocab_size)]
    kinds = np.full(vocab_size, PieceType.UNUSED, np.int32)
    for token, token_id in pipeline.vocab.items():
        texts[token_id], kinds[token_id] = spell(token), PieceType.NORMAL
    for added in pipeline.added_tokens:
        texts[added.id] = added.content
        kinds[added.id] = PieceType.CONTROL if added.special else PieceType.USER_DEFINED
    for token_id, kind in types.items():
        kinds[token_id] = kind
    if len(set(texts)) < vocab_size:
        twice = next(token for token in texts if texts.count(token) > 1)
        raise TokenizerError(
            f"token {twice!r} would stand twice in the GGUF file, which llama.cpp refuses; "
            "rename the special token"
        )
    metadata: dict[str, Value] = {
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": kinds,
    }
    vocab = pipeline.vocab
    beside = [added.id for added in pipeline.added_tokens if added.content not in vocab]
    normalized = [added.id for added in pipeline.added_tokens if added.normalized]
    for name, ids in (("beside_model", beside), ("normalized_tokens", normalized)):
        if ids:
            metadata[f"llmlab.tokenizer.{name}"] = np.array(ids, np.int32)
    return metadata


def role_metadata(
    tokenizer: Tokenizer, pipeline: Pipeline, *, unknown_id: int | None
) -> dict[str, Value]:
    """Return the tokens with a part to play, what stands around a text, and the chat template.

    Args:
        tokenizer: the tokenizer.
        pipeline: what decides its ids.
        unknown_id: what text becomes that has no token.

    Raises:
        TokenizerError: more or other tokens stand around a text than a GGUF file can say.
    """
    special = tokenizer.special_tokens
    ids = {
        "bos": _around(pipeline, pipeline.bos_tokens, "bos_token", tokenizer.bos_token_id),
        "eos": _around(pipeline, pipeline.eos_tokens, "eos_token", tokenizer.eos_token_id),
        "eot": next((special[token] for token in _TURN_ENDS if token in special), None),
        "padding": tokenizer.pad_token_id,
        "unknown": unknown_id,
    }
    metadata: dict[str, Value] = {
        f"tokenizer.ggml.{role}_token_id": token for role, token in ids.items() if token is not None
    }
    metadata["tokenizer.ggml.add_bos_token"] = bool(pipeline.bos_tokens)
    metadata["tokenizer.ggml.add_eos_token"] = bool(pipeline.eos_tokens)
    named = {
        "bos_token": tokenizer.bos_token_id,
        "eos_token": tokenizer.eos_token_id,
        "pad_token": tokenizer.pad_token_id,
        "unk_token": tokenizer.unk_token_id,
    }
    metadata["llmlab.tokenizer.roles"] = [role for role in ROLES if named[role] is not None]
    if tokenizer.chat_template is not None:
        metadata["tokenizer.chat_template"] = tokenizer.chat_template
    return metadata


def check_eos(tokenizer: Tokenizer, *, default: int) -> None:
    """Raise TokenizerError when nothing ends a text, for which llama.cpp would take an id."""
    if tokenizer.eos_token_id is None:
        raise TokenizerError(
            f"the tokenizer has no eos_token, and llama.cpp would then end a text at id {default}; "
            "give eos_token"
        )


def _check_added(tokens: tuple[AddedToken, ...]) -> None:
    for added in tokens:
        if added.lstrip or added.rstrip:
            raise TokenizerError(
                f"added token {added.content!r} takes the white space beside it (lstrip or "
                "rstrip), which a GGUF file cannot say; switch that off"
            )
    check_found([added.content for added in tokens])


def check_found(contents: Sequence[str]) -> None:
    """Raise TokenizerError when llama.cpp, which takes the longest first, finds other tokens."""
    longest_last = sorted(contents, key=len)
    starts = {text[:end]: text for text in longest_last for end in range(1, len(text))}
    for content in contents:
        for at in range(1, len(content)):
            later = starts.get(content[at:], "")
            if len(later) >= len(content) and len({*content, *later}) > 1:
                raise TokenizerError(
                    f"added token {content!r} ends as {later!r} begins, and where both could stand "
                    "llama.cpp takes the longer one, not the first one; rename one"
                )


def _around(
    pipeline: Pipeline, tokens: tuple[str, ...], role: str, named: int | None
) -> int | None:
    """Return the id of what plays the role, at an end of every text or only by name."""
    if not tokens:
        return named
    ids = {added.content: added.id for added in pipeline.added_tokens} | dict(pipeline.vocab)
    if len(tokens) > 1 or named not in (None, ids[tokens[0]]):
        raise TokenizerError(
            f"a text starts or ends with {' '.join(tokens)!r}, and a GGUF file has only one "
            f"{role} for that; leave one token there, the {role}"
        )
    return ids[tokens[0]]


class GgufTokens:
    """The tokens that the metadata of a file list, checked.

    Args:
        metadata: key to value; numbers and text as Python's, arrays of numbers as numpy arrays.

    Attributes:
        texts: by id, as they stand in the file.
        types: by id, the numbers of `PieceType`.

    Raises:
        TokenizerError: a list is missing or has another length than the others.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self.texts = self.text_list("tokens")
        self.types = self.numbers("token_type")
        if odd := set(self.types.tolist()) - set(PieceType):
            raise TokenizerError(f"token type {min(odd)} is none of 1 to 6; the file is damaged")

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of `tokenizer.ggml.NAME`."""
        return self._metadata.get(f"tokenizer.ggml.{name}", default)

    def said(self, name: str, default: Any = None) -> Any:
        """Return the value of `llmlab.tokenizer.NAME`, which files written here have."""
        return self._metadata.get(f"llmlab.tokenizer.{name}", default)

    def text_list(self, name: str) -> list[str]:
        """Return a list of texts."""
        value = self.get(name)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise TokenizerError(f"there is no list tokenizer.ggml.{name}; the file is incomplete")
        return value

    def numbers(self, name: str) -> np.ndarray:
        """Return numbers, one for each token."""
        value = self.get(name)
        size = len(value) if isinstance(value, np.ndarray) else 0
        if size != len(self.texts):
            raise TokenizerError(
                f"tokenizer.ggml.{name} has {size} entries for {len(self.texts)} tokens; the file "
                "is damaged"
            )
        return value

    def of_type(self, *types: PieceType) -> list[int]:
        """Return the ids of these types, in order."""
        return np.flatnonzero(np.isin(self.types, types)).tolist()

    def id_of(self, role: str) -> int | None:
        """Return the id that plays a role (`bos`, `eos`, `padding`, `unknown`, …)."""
        number = self.get(f"{role}_token_id")
        if number is not None and not (isinstance(number, int) and 0 <= number < len(self.texts)):
            raise TokenizerError(
                f"tokenizer.ggml.{role}_token_id={number} is outside the vocabulary of "
                f"{len(self.texts)}; the file is damaged"
            )
        return number

    def model_ids(self) -> list[int]:
        """Return the ids of the tokens that the model has: not the unused, not those beside it."""
        beside = set(np.asarray(self.said("beside_model", ())).tolist())
        unused = set(self.of_type(PieceType.UNUSED))
        return [at for at in range(len(self.texts)) if at not in beside and at not in unused]

    def added_tokens(self, *, user_defined: bool) -> tuple[AddedToken, ...]:
        """Return the special tokens and, if asked for, those that are matched but ordinary."""
        normalized = set(np.asarray(self.said("normalized_tokens", ())).tolist())
        special = set(self.of_type(PieceType.CONTROL, PieceType.UNKNOWN))
        ordinary = self.of_type(PieceType.USER_DEFINED) if user_defined else ()
        return tuple(
            AddedToken(at, self.texts[at], normalized=at in normalized, special=at in special)
            for at in sorted({*special, *ordinary})
        )

    def beside_text(self, role: str, *, default: bool) -> tuple[str, ...]:
        """Return what stands before (`bos`) or after (`eos`, the separator) every text.

        Args:
            role: which of them.
            default: whether it does where the file does not say.
        """
        at = self.id_of(role)
        adds = self.get(f"add_{role[:3]}_token", default)
        return () if at is None or not adds else (self.texts[at],)

    def names(self) -> dict[str, str]:
        """Return role to token, as a tokenizer folder names roles."""
        said = self.said("roles", ROLES)
        found = {role: self.id_of(key) for role, key in _ROLE_KEYS.items() if role in said}
        return {role: self.texts[at] for role, at in found.items() if at is not None}
