"""A tokenizer.json whose parts are none of ours: kept as it is, and read as far as needed.

Such a file still says which tokens are added, what stands before and behind a text, and how tokens
become text. Not here: ids, which Hugging Face `tokenizers` makes of it (foreign_encoder.py); files
made of parts this project has itself (tokenizer_json.py). Nothing is written.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from llmlab.errors import TokenizerError
from llmlab.tokenizers.added_tokens import AddedToken

_FIELDS = frozenset(field.name for field in fields(AddedToken))


@dataclass(frozen=True)
class ForeignPipeline:
    """A pipeline that only `tokenizers` can run.

    Args:
        content: of tokenizer.json. Padding and truncation in it are settings of a call and count
            for nothing.

    Raises:
        TokenizerError: there is no model in it, or a part that is read here is damaged.
    """

    content: dict[str, Any]

    def __post_init__(self) -> None:
        if not isinstance(self.content.get("model"), dict):
            raise TokenizerError("not a whole tokenizer.json: it has no model; write it anew")
        try:
            _ = self.added_tokens, self.bos_tokens, self.eos_tokens
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise TokenizerError(f"not a whole tokenizer.json: {error!r}; write it anew") from error

    @cached_property
    def added_tokens(self) -> tuple[AddedToken, ...]:
        """Tokens matched before anything else, by id."""
        tokens = [
            AddedToken(**{key: value for key, value in token.items() if key in _FIELDS})
            for token in self.content.get("added_tokens") or []
        ]
        return tuple(sorted(tokens, key=lambda token: token.id))

    @cached_property
    def bos_tokens(self) -> tuple[str, ...]:
        """What the file puts before a text."""
        return self._around[0]

    @cached_property
    def eos_tokens(self) -> tuple[str, ...]:
        """What the file puts behind a text."""
        return self._around[1]

    @cached_property
    def _around(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return _around(self.content.get("post_processor"))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 in hex of the file, however it is spelled; padding and truncation left out."""
        text = json.dumps(
            without_call_settings(self.content),
            ensure_ascii=True,
            separators=(",", ":"),
            sort_keys=True,
        )
        return hashlib.sha256(text.encode()).hexdigest()


def without_call_settings(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content with padding and truncation off."""
    return {**content, "padding": None, "truncation": None}


def components(part: Any) -> Iterator[dict[str, Any]]:
    """Yield the components of a normalizer, pre_tokenizer, decoder or post_processor in order."""
    if part is None:
        return
    inner = (part.get(name) for name in ("normalizers", "pretokenizers", "decoders", "processors"))
    listed = next((each for each in inner if each is not None), None)
    if listed is None:
        yield part
        return
    for each in listed:
        yield from components(each)


def _around(post_processor: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what a post-processor puts before and behind a text; later parts go outside."""
    before: tuple[str, ...] = ()
    behind: tuple[str, ...] = ()
    for part in components(post_processor):
        if part["type"] == "TemplateProcessing":
            first, last = _template_ends(part)
            before, behind = first + before, behind + last
        elif part["type"] in ("BertProcessing", "RobertaProcessing"):
            before, behind = (part["cls"][0], *before), (*behind, part["sep"][0])
    return before, behind


def _template_ends(part: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    pieces = part["single"]
    text = next(at for at, piece in enumerate(pieces) if "Sequence" in piece)

    def tokens(some: list[dict[str, Any]]) -> tuple[str, ...]:
        names = (piece["SpecialToken"]["id"] for piece in some)
        return tuple(token for name in names for token in part["special_tokens"][name]["tokens"])

    return tokens(pieces[:text]), tokens(pieces[text + 1 :])


# -- a copy that cannot be made to give special tokens ---------------------------------------------


def guarded_content(content: dict[str, Any], guard: str) -> dict[str, Any]:
    """Return content whose special tokens no text can spell; the ids are the same.

    `tokenizers` can be told to leave special tokens in a text alone, but a vocabulary often holds
    them as words too: a Unigram model finds the piece `</s>`, a word-level model the word `[PAD]`.
    Here each one is spelled with a guard before it, in the model and among the added tokens.

    Args:
        content: of a tokenizer.json.
        guard: text that nobody can guess.
    """
    added = content.get("added_tokens") or []
    special = {token["content"] for token in added if token.get("special")}

    def guarded(token: Any) -> Any:
        return guard + token if token in special else token

    model = dict(content["model"])
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        model["vocab"] = {guarded(token): token_id for token, token_id in vocab.items()}
    else:
        model["vocab"] = [[guarded(piece), score] for piece, score in vocab or []]
    if "unk_token" in model:
        model["unk_token"] = guarded(model["unk_token"])
    if "merges" in model:
        model["merges"] = [each for each in model["merges"] if special.isdisjoint(_spelled(each))]
    tokens = [{**token, "content": guarded(token["content"])} for token in added]
    return {**content, "model": model, "added_tokens": tokens}


def _spelled(merge: str | list[str]) -> tuple[str, str, str]:
    """Return the two tokens of a merge and the one it makes."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right, left + right


def inner_content(content: dict[str, Any]) -> dict[str, Any]:
    """Return content for text that does not start a text: without the space before the first word.

    Only `prepend_scheme="first"` of Metaspace makes a difference between the two.
    """
    return {**content, "pre_tokenizer": _never_prepending(content.get("pre_tokenizer"))}


def _never_prepending(part: Any) -> Any:
    if not isinstance(part, dict):
        return part
    if part.get("type") == "Metaspace" and part.get("prepend_scheme") == "first":
        return {**part, "prepend_scheme": "never"}
    if "pretokenizers" in part:
        return {
            **part,
            "pretokenizers": [_never_prepending(each) for each in part["pretokenizers"]],
        }
    return part


def untrimmed_content(content: dict[str, Any]) -> dict[str, Any]:
    """Return content whose offsets keep the white space that a token holds."""
    return {**content, "post_processor": _untrimmed(content.get("post_processor"))}


def _untrimmed(part: Any) -> Any:
    if isinstance(part, dict):
        trimmed = {"trim_offsets": False} if "trim_offsets" in part else {}
        return {key: _untrimmed(value) for key, value in part.items()} | trimmed
    return [_untrimmed(each) for each in part] if isinstance(part, list) else part
