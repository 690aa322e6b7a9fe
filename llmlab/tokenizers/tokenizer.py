"""`Tokenizer`: text to token ids and back, training, files and chats.

Not here: how each step works (splits.py, added_tokens.py, bpe.py, trainer.py, chat.py), the format
of the files (folder.py, tokenizer_json.py).
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from llmlab.errors import ConfigError, DataError, TokenizerError
from llmlab.tokenizers.added_tokens import AddedToken
from llmlab.tokenizers.chat import CHATML, ChatTemplate, Message
from llmlab.tokenizers.chat_spans import render_guarded, render_spans
from llmlab.tokenizers.encoder import Encoder, as_list
from llmlab.tokenizers.files.folder import ROLES, read_folder, write_folder
from llmlab.tokenizers.pipeline import Pipeline
from llmlab.tokenizers.splits import find_split
from llmlab.tokenizers.stream import StreamDecoder
from llmlab.tokenizers.trainer import BYTE_CHARS, count_pieces, learn_merges
from llmlab.track import OnProgress, silent

END_OF_TEXT, PAD = "<|endoftext|>", "<|pad|>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"

SPECIAL_TOKENS: tuple[str, ...] = (
    END_OF_TEXT,
    PAD,
    TURN_START,
    TURN_END,
    *(f"<|reserved_{number}|>" for number in range(12)),
)
"""The special tokens of a tokenizer trained here; the reserved ones are for finetuning."""

_STOP_TOKENS = frozenset(
    [END_OF_TEXT, TURN_END, "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "</s>"]
)
"""Names under which published models end a text or a turn."""


class Tokenizer:
    """A byte-level BPE tokenizer.

    Use `load`, `train` or `from_vocab` to make one. It never changes; threads may share it.

    Args:
        pipeline: what decides the ids.
        names: role (`bos_token`, `eos_token`, `pad_token`, `unk_token`) to the token's text.
        chat_template: Jinja text, or None.

    Raises:
        TokenizerError: the vocabulary and the merges or names do not fit together.
    """

    def __init__(
        self, pipeline: Pipeline, *, names: Mapping[str, str], chat_template: str | None = None
    ) -> None:
        self.pipeline = pipeline
        """What decides the ids."""
        self._names = dict(names)
        self._encoder = Encoder(pipeline)
        self._special_ids = frozenset(token.id for token in pipeline.added_tokens if token.special)
        for role, token in names.items():
            if token not in self._encoder.ids:
                raise TokenizerError(f"{role} {token!r} is not in the vocabulary; add it there")
        self._chat = None if chat_template is None else ChatTemplate(chat_template, self._names)

    # -- making one --------------------------------------------------------------------------

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read a tokenizer folder, or the tokenizer of a model folder.

        Raises:
            TokenizerError: there is none, a file is damaged, or its pipeline is not supported yet
                (the message names the part).
        """
        pipeline, names, chat_template = read_folder(folder)
        return cls(pipeline, names=names, chat_template=chat_template)

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        *,
        vocab_size: int,
        algorithm: Literal["bpe"] = "bpe",
        split: str = "qwen2",
        special_tokens: Sequence[str] = SPECIAL_TOKENS,
        on_progress: OnProgress = silent,
    ) -> Self:
        """Learn a vocabulary.

        Ids are the special tokens in their order, the 256 bytes, then the merges as learnt.
        `<|endoftext|>` becomes eos, `<|pad|>` pad, and with `<|im_start|>` and `<|im_end|>` the
        tokenizer gets the ChatML template. Special tokens in the texts are plain text.

        Args:
            texts: read once, one at a time.
            vocab_size: tokens in all. When the texts run out of pairs that occur twice, the
                tokenizer is smaller: see its `vocab_size`.
            algorithm: only "bpe".
            split: name of the way to cut text (splits.py).
            special_tokens: their texts, all different.
            on_progress: called with the state of the counting and merging.

        Raises:
            ConfigError: `vocab_size` leaves no room for bytes and special tokens, or a choice is
                not known.
            DataError: the texts are empty.
        """
        if algorithm != "bpe":
            raise ConfigError(f"algorithm={algorithm!r} is not known; the choice is 'bpe'")
        first_merge = len(special_tokens) + len(BYTE_CHARS)
        if not first_merge <= vocab_size <= 1_000_000:
            raise ConfigError(
                f"vocab_size={vocab_size} is out of range: 256 bytes and {len(special_tokens)} "
                f"special tokens need at least {first_merge}, and 1000000 is the most"
            )
        way = find_split(split)
        counts = count_pieces(texts, way, on_progress=on_progress)
        if not counts:
            raise DataError("the corpus is empty (no text at all); give texts to learn from")
        merges = learn_merges(
            counts,
            vocab_size - first_merge,
            reserved=frozenset(special_tokens),
            on_progress=on_progress,
        )
        learnt = dict.fromkeys(left + right for left, right in merges)
        return cls.from_vocab(
            [*special_tokens, *BYTE_CHARS, *learnt],
            merges,
            split=split,
            special_tokens=special_tokens,
            eos_token=END_OF_TEXT if END_OF_TEXT in special_tokens else None,
            pad_token=PAD if PAD in special_tokens else None,
            chat_template=CHATML if {TURN_START, TURN_END} <= set(special_tokens) else None,
        )

    @classmethod
    def from_vocab(
        cls,
        tokens: Sequence[str] | Mapping[str, int],
        merges: Sequence[tuple[str, str]] | Sequence[str],
        *,
        split: str,
        special_tokens: Iterable[str] = (),
        added_tokens: Iterable[str] = (),
        bos_token: str | None = None,
        eos_token: str | None = None,
        pad_token: str | None = None,
        unk_token: str | None = None,
        add_bos: bool = False,
        normalizer: Literal["NFC"] | None = None,
        ignore_merges: bool = False,
        chat_template: str | None = None,
    ) -> Self:
        """Build a tokenizer from a vocabulary, such as the one in a GGUF file.

        Args:
            tokens: by id, or token to id; ordinary tokens spelled in the byte alphabet.
            merges: pairs of tokens, or both in one string with a space between; best first.
            split: name of the way to cut text (splits.py).
            special_tokens: those of `tokens` that steer the model, as plain text.
            added_tokens: those of `tokens` that are matched whole but are ordinary vocabulary.
            bos_token: what stands at the start of a text.
            eos_token: what ends a text.
            pad_token: what fills up a batch.
            unk_token: kept for the files; encoding never needs it.
            add_bos: every prompt starts with `bos_token`.
            normalizer: Unicode form the text is brought into first.
            ignore_merges: see `Pipeline`.
            chat_template: Jinja text.

        Raises:
            TokenizerError: a token is missing or there twice, or `add_bos` lacks a `bos_token`.
        """
        vocab = dict(tokens) if isinstance(tokens, Mapping) else _numbered(tokens)
        special = dict.fromkeys(special_tokens)
        added = {
            content: AddedToken(
                id=_needed(vocab, content), content=content, special=content in special
            )
            for content in [*special, *added_tokens]
        }
        if add_bos and bos_token is None:
            raise TokenizerError("add_bos=True without a bos_token; give bos_token as well")
        pipeline = Pipeline(
            vocab=vocab,
            merges=tuple(_pair(merge) for merge in merges),
            split=find_split(split),
            added_tokens=tuple(sorted(added.values(), key=lambda token: token.id)),
            normalizer=normalizer,
            ignore_merges=ignore_merges,
            bos_tokens=(bos_token,) if add_bos and bos_token else (),
        )
        named = zip(ROLES, (bos_token, eos_token, pad_token, unk_token), strict=True)
        names = {role: token for role, token in named if token is not None}
        return cls(pipeline, names=names, chat_template=chat_template)

    def save(self, folder: Path | str) -> None:
        """Write the files of a tokenizer folder; other files in the folder stay."""
        write_folder(folder, self.pipeline, self._names, self.chat_template)

    # -- text and ids ------------------------------------------------------------------------

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Return the ids of a text; nothing is added.

        Args:
            text: any text without lone surrogates.
            allow_special: read special tokens in the text as such; otherwise they are text.

        Raises:
            TokenizerError: the text has a lone surrogate.
        """
        return self.encode_to_array(text, allow_special=allow_special).tolist()

    def encode_to_array(self, text: str, *, allow_special: bool = False) -> NDArray[np.uint32]:
        """Return the ids of a text as an array; much cheaper than a list for long texts."""
        return np.frombuffer(self._encoder.encode(text, allow_special=allow_special), np.uint32)

    def encode_batch(self, texts: Iterable[str], *, allow_special: bool = False) -> list[list[int]]:
        """Return the ids of each text."""
        return [self.encode(text, allow_special=allow_special) for text in texts]

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """Return the text of ids; bytes that are not UTF-8 become U+FFFD.

        An id without a token (a model's vocabulary may be padded) stands for nothing.
        """
        skipped = self._special_ids if skip_special_tokens else frozenset()
        kept = (self.token_bytes(token) for token in ids if int(token) not in skipped)
        return b"".join(kept).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes an id stands for; b"" for an id without a token."""
        known = self._encoder.token_bytes
        return known[token_id] if 0 <= token_id < len(known) else b""

    def stream(self, *, skip_special_tokens: bool = False) -> StreamDecoder:
        """Return a decoder for ids that come one at a time."""
        if not skip_special_tokens:
            return StreamDecoder(self.token_bytes)
        special = self._special_ids
        return StreamDecoder(lambda token: b"" if token in special else self.token_bytes(token))

    # -- chats -------------------------------------------------------------------------------

    def render_chat(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True
    ) -> str:
        """Return a chat as text, as `transformers` renders it.

        Args:
            messages: `{"role", "content"}` dicts.
            add_generation_prompt: end with what the assistant's next turn starts with.

        Raises:
            TokenizerError: there is no chat template, or it fails on the messages.
        """
        return self._template.render(messages, add_generation_prompt=add_generation_prompt)

    def encode_chat(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Return the ids of a chat; special tokens inside messages stay text (chat_spans.py)."""
        chat = render_guarded(
            self._template,
            messages,
            self.special_tokens,
            add_generation_prompt=add_generation_prompt,
        )
        ids: list[int] = []
        for start, end, token in self._encoder.parts(chat.text, allow_special=True):
            if token is None:
                ids += as_list(self._encoder.encode_part(chat.plain(start, end)))
            else:
                ids.append(token)
        return ids

    def encode_chat_masked(self, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """Return the ids of a chat, and True for those of what the assistant says.

        Its end-of-turn tokens count as said. A token that lies partly in the assistant's text
        counts as well. Special tokens inside messages stay text.

        Raises:
            TokenizerError: as `render_chat`, or the assistant's part cannot be found (render_spans
                says when).
        """
        stops = [token for token, i in self._encoder.ids.items() if i in self.stop_token_ids]
        chat = render_spans(self._template, messages, self.special_tokens, stops)
        scored: list[tuple[int, bool]] = []
        for start, end, token in self._encoder.parts(chat.text, allow_special=True):
            spans = chat.spans_within(start, end)
            if token is None:
                scored += self._encoder.encode_masked(chat.plain(start, end), spans)
            else:
                scored.append((token, bool(spans)))
        return [token for token, _ in scored], [is_said for _, is_said in scored]

    @property
    def _template(self) -> ChatTemplate:
        if self._chat is None:
            raise TokenizerError(
                "this tokenizer has no chat template; put a chat_template.jinja into its folder"
            )
        return self._chat

    # -- facts -------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """The highest id plus one, special tokens included."""
        return len(self._encoder.token_bytes)

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """Special tokens and their ids, in the order of the ids."""
        return {token.content: token.id for token in self.pipeline.added_tokens if token.special}

    @property
    def bos_token_id(self) -> int | None:
        """The id of what stands at the start of a text."""
        return self._id_of(self._names.get("bos_token"))

    @property
    def eos_token_id(self) -> int | None:
        """The id of what ends a text."""
        return self._id_of(self._names.get("eos_token"))

    @property
    def pad_token_id(self) -> int | None:
        """The id of what fills up a batch."""
        return self._id_of(self._names.get("pad_token"))

    @cached_property
    def bos_ids(self) -> list[int]:
        """What a prompt starts with: `[bos]` or `[]`."""
        return [self._encoder.ids[token] for token in self.pipeline.bos_tokens]

    @cached_property
    def stop_token_ids(self) -> frozenset[int]:
        """The ids that end a text or a turn."""
        ids = {i for token, i in self.special_tokens.items() if token in _STOP_TOKENS}
        return frozenset(ids if self.eos_token_id is None else ids | {self.eos_token_id})

    @property
    def split(self) -> str:
        """The name of the way text is cut."""
        return self.pipeline.split.name

    @property
    def chat_template(self) -> str | None:
        """The Jinja text, or None."""
        return None if self._chat is None else self._chat.source

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 in hex of what decides the ids; the same after saving and loading."""
        return self.pipeline.fingerprint

    def _id_of(self, token: str | None) -> int | None:
        return None if token is None else self._encoder.ids.get(token)


def _numbered(tokens: Sequence[str]) -> dict[str, int]:
    vocab = {token: number for number, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        twice = next(token for number, token in enumerate(tokens) if vocab[token] != number)
        raise TokenizerError(f"token {twice!r} is in the vocabulary twice; each must be unique")
    return vocab


def _needed(vocab: Mapping[str, int], token: str) -> int:
    if token not in vocab:
        raise TokenizerError(f"special token {token!r} is not in the vocabulary; add it there")
    return vocab[token]


def _pair(merge: str | tuple[str, str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right
