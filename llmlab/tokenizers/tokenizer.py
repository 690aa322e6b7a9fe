"""`Tokenizer`: text to token ids and back, training, files and chats.

Not here: how each step works (splits.py, added_tokens.py, bpe.py, trainer.py, chat.py), the format
of the files (folder.py, tokenizer_json.py).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from llmlab.errors import TokenizerError
from llmlab.tokenizers.added_tokens import AddedToken
from llmlab.tokenizers.chat import CHATML, ChatTemplate, Message
from llmlab.tokenizers.chat_spans import render_guarded, render_spans
from llmlab.tokenizers.decoders import ByteLevelDecoder
from llmlab.tokenizers.encoder import Encoder, Encoding, as_list
from llmlab.tokenizers.files.folder import ROLES, read_folder, write_folder
from llmlab.tokenizers.files.foreign import ForeignPipeline
from llmlab.tokenizers.files.sentencepiece_model import read_sentencepiece
from llmlab.tokenizers.files.sentencepiece_pipeline import sentencepiece_pipeline
from llmlab.tokenizers.files.tiktoken_ranks import is_rank_file, read_rank_file
from llmlab.tokenizers.models.bpe import ByteLevelBPE
from llmlab.tokenizers.normalizers import UnicodeForm
from llmlab.tokenizers.pipeline import Pipeline
from llmlab.tokenizers.plan import (
    END_OF_TEXT,
    SPECIAL_TOKENS,
    TURN_END,
    TURN_START,
    Algorithm,
    LearningPlan,
)
from llmlab.tokenizers.splits import find_split
from llmlab.tokenizers.stream import SkippingStream, Stream
from llmlab.track import OnProgress, silent

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
        self,
        pipeline: Pipeline | ForeignPipeline,
        *,
        names: Mapping[str, str],
        chat_template: str | None = None,
    ) -> None:
        self.pipeline = pipeline
        """What decides the ids."""
        self._names = dict(names)
        self._encoder = _encoder_of(pipeline)
        self._special_ids = frozenset(token.id for token in pipeline.added_tokens if token.special)
        for role, token in names.items():
            if token not in self._encoder.ids:
                raise TokenizerError(f"{role} {token!r} is not in the vocabulary; add it there")
        self._chat = None if chat_template is None else ChatTemplate(chat_template, self._names)

    # -- making one --------------------------------------------------------------------------

    @classmethod
    def load(cls, path: Path | str, *, split: str | None = None) -> Self:
        """Read a tokenizer.

        Args:
            path: a tokenizer or model folder, a tokenizer.json, a rank file of tiktoken, or a
                SentencePiece model.
            split: how text is cut, for a rank file that is none of the published ones.

        Raises:
            TokenizerError: there is none, or a file is damaged.
            MissingExtraError: its pipeline is none of llmlab's, and `tokenizers` is not installed.
        """
        path = Path(path)
        if is_rank_file(path):
            return cls.from_vocab(**read_rank_file(path, split=split))
        if path.suffix == ".model":
            pipeline, names = sentencepiece_pipeline(read_sentencepiece(path))
            return cls(pipeline, names=names)
        pipeline, names, chat_template = read_folder(path)
        return cls(pipeline, names=names, chat_template=chat_template)

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        *,
        vocab_size: int,
        algorithm: Algorithm = "bpe",
        split: str = "qwen2",
        digits: int | None = None,
        lowercase: bool = False,
        min_frequency: int = 2,
        limit_alphabet: int | None = None,
        special_tokens: Sequence[str] = SPECIAL_TOKENS,
        num_threads: int | None = None,
        on_progress: OnProgress = silent,
    ) -> Self:
        """Learn a vocabulary.

        Ids are the special tokens in their order, the alphabet, then the tokens as learnt.
        `<|endoftext|>` becomes eos, `<|pad|>` pad, and with `<|im_start|>` and `<|im_end|>` the
        tokenizer gets the ChatML template. Special tokens in the texts are plain text.

        Args:
            texts: read once, a batch at a time (compiled/counting.py states the memory bound).
            vocab_size: tokens in all. When the texts run out of patterns seen `min_frequency`
                times, the tokenizer is smaller: see its `vocab_size`.
            algorithm: "bpe" (bytes), "unigram", "wordpiece", "char" or "word" (learning.py says
                what pipeline each one gets).
            split: name of the way "bpe" cuts text (splits.py).
            digits: longest run of digits in one token of "bpe", 1 to 3; None is the split's own.
            lowercase: whether "wordpiece" folds case and drops accents, as uncased BERT does.
            min_frequency: how often a pattern must be seen to become a token.
            limit_alphabet: characters kept at most, the most frequent ones; "bpe" has all bytes.
            special_tokens: their texts, all different.
            num_threads: None for all cores; the result does not depend on it.
            on_progress: called with the state of the counting and learning.

        Raises:
            ConfigError: `vocab_size` leaves no room for the alphabet and special tokens, or a
                choice is not known.
            DataError: the texts are empty.
        """
        plan = LearningPlan(
            vocab_size=vocab_size,
            algorithm=algorithm,
            split=split,
            digits=digits,
            lowercase=lowercase,
            min_frequency=min_frequency,
            limit_alphabet=limit_alphabet,
            special_tokens=tuple(special_tokens),
            num_threads=num_threads,
        )
        # Loaded here: it needs the compiler, and few processes that hold a tokenizer learn one.
        learning = import_module("llmlab.tokenizers.learning")
        pipeline = learning.learn(texts, plan, on_progress)
        return cls(
            pipeline,
            names=plan.roles,
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
            split=find_split(split),
            added_tokens=tuple(sorted(added.values(), key=lambda token: token.id)),
            normalizers=() if normalizer is None else (UnicodeForm(normalizer),),
            model=ByteLevelBPE(
                vocab=vocab,
                merges=tuple(_pair(merge) for merge in merges),
                ignore_merges=ignore_merges,
            ),
            bos_tokens=(bos_token,) if add_bos and bos_token else (),
            decoder=ByteLevelDecoder(),
        )
        named = zip(ROLES, (bos_token, eos_token, pad_token, unk_token), strict=True)
        names = {role: token for role, token in named if token is not None}
        return cls(pipeline, names=names, chat_template=chat_template)

    def save(self, folder: Path | str) -> None:
        """Write the files of a tokenizer folder; other files in the folder stay."""
        write_folder(folder, self.pipeline, self._names, self.chat_template)

    # -- text and ids ------------------------------------------------------------------------

    def encode(
        self,
        text: str,
        *,
        allow_special: bool = False,
        dropout: float = 0.0,
        rng: Random | None = None,
    ) -> list[int]:
        """Return the ids of a text; nothing is added.

        Args:
            text: any text without lone surrogates.
            allow_special: read special tokens in the text as such; otherwise they are text.
            dropout: probability of leaving out a merge, which cuts the same text in another way
                each time (BPE-dropout, arXiv:1910.13267); a regulariser of training, for "bpe".
            rng: where the chance of `dropout` comes from.

        Raises:
            TokenizerError: the text has a lone surrogate, or `dropout` is asked of another
                algorithm.
        """
        if dropout:
            if not isinstance(self._encoder, Encoder):
                raise TokenizerError(f"dropout={dropout} needs a BPE tokenizer of llmlab's own")
            return self._encoder.encode_with_dropout(
                text, dropout, rng or Random(), allow_special=allow_special
            )
        return self.encode_to_array(text, allow_special=allow_special).tolist()

    def encode_to_array(self, text: str, *, allow_special: bool = False) -> NDArray[np.uint32]:
        """Return the ids of a text as an array; much cheaper than a list for long texts."""
        return np.frombuffer(self._encoder.encode(text, allow_special=allow_special), np.uint32)

    def encode_with_offsets(self, text: str, *, allow_special: bool = False) -> Encoding:
        """Return the ids of a text and the characters of it that each one stands for."""
        return self._encoder.encode_with_offsets(text, allow_special=allow_special)

    def encode_batch(self, texts: Iterable[str], *, allow_special: bool = False) -> list[list[int]]:
        """Return the ids of each text, as `encode` does, on all cores."""
        arrays = self.encode_batch_to_arrays(texts, allow_special=allow_special)
        return [array.tolist() for array in arrays]

    def encode_batch_to_arrays(
        self,
        texts: Iterable[str],
        *,
        allow_special: bool = False,
        num_threads: int | None = None,
    ) -> list[NDArray[np.uint32]]:
        """Return the ids of each text as arrays, on all cores: the fast way for a corpus.

        Args:
            texts: any number of texts of any length.
            allow_special: as in `encode`.
            num_threads: None for all cores.
        """
        return self._encoder.encode_batch(
            list(texts), allow_special=allow_special, num_threads=num_threads
        )

    def encode_iter(
        self, chunks: Iterable[str], *, allow_special: bool = False
    ) -> Iterator[NDArray[np.uint32]]:
        """Yield the ids of one long text that comes in chunks, such as a file read piecemeal.

        The arrays joined are the ids of the chunks joined. With byte-level BPE memory holds a few
        chunks; other algorithms put the text together first.

        Args:
            chunks: cut anywhere.
            allow_special: as in `encode`.
        """
        return self._encoder.encode_chunks(chunks, allow_special=allow_special)

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """Return the text of ids; bytes that are not UTF-8 become U+FFFD.

        An id without a token (a model's vocabulary may be padded) stands for nothing.
        """
        skipped = self._special_ids if skip_special_tokens else frozenset()
        return self._encoder.decode([i for i in map(int, ids) if i not in skipped])

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes an id stands for within a text; b"" for an id without a token."""
        known = self._encoder.token_bytes
        return known[token_id] if 0 <= token_id < len(known) else b""

    def stream(self, *, skip_special_tokens: bool = False) -> Stream:
        """Return a decoder for ids that come one at a time."""
        stream = self._encoder.stream()
        return SkippingStream(stream, self._special_ids) if skip_special_tokens else stream

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
                part = self._encoder.encode_part(chat.plain(start, end), is_start=start == 0)
                ids += as_list(part)
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
                scored += self._encoder.encode_masked(
                    chat.plain(start, end), spans, is_start=start == 0
                )
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

    @property
    def unk_token_id(self) -> int | None:
        """The id of what text becomes that the vocabulary cannot spell."""
        return self._id_of(self._names.get("unk_token"))

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
        return self.pipeline.split.name if isinstance(self.pipeline, Pipeline) else "none of ours"

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


def _encoder_of(pipeline: Pipeline | ForeignPipeline) -> Any:
    """Return what runs a pipeline: `Encoder`, or for a foreign one what answers the same."""
    if isinstance(pipeline, Pipeline):
        return Encoder(pipeline)
    # Loaded late: it needs the package `tokenizers`, which is not always there.
    foreign = import_module("llmlab.tokenizers.foreign_encoder")
    return foreign.ForeignEncoder(pipeline)


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
