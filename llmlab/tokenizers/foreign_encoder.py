"""A pipeline that is none of ours at work, through Hugging Face `tokenizers`.

It answers as `Encoder` does for the pipelines of this project. Ids are those of `tokenizers`, with
one difference: text from a user can never become a special token (`guarded_content` says how).
This is the one module of the product that imports `tokenizers`, and it is loaded for such pipelines
alone. Not here: reading the file (files/foreign.py).
"""

import json
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmlab.errors import MissingExtraError, TokenizerError
from llmlab.tokenizers.added_tokens import AddedTokens
from llmlab.tokenizers.alphabet import unspell, utf8
from llmlab.tokenizers.encoder import Span
from llmlab.tokenizers.files.foreign import (
    ForeignPipeline,
    components,
    guarded_content,
    inner_content,
    untrimmed_content,
    without_call_settings,
)

try:
    import tokenizers
except ImportError as error:
    raise MissingExtraError("tokenizers", "tokenizers") from error

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_LENGTHENING = frozenset(
    ["ByteLevel", "WordPiece", "Metaspace", "BPEDecoder", "ByteFallback", "Fuse", "Strip", "CTC"]
)
"""Decoders with which more ids only ever lengthen the text, byte tokens and U+FFFD left aside."""


class ForeignEncoder:
    """Turns text into ids as a tokenizer.json says. It never changes; threads may share it.

    Args:
        pipeline: what decides the ids.

    Raises:
        TokenizerError: `tokenizers` cannot read the file.
    """

    def __init__(self, pipeline: ForeignPipeline) -> None:
        content = untrimmed_content(without_call_settings(pipeline.content))
        guarded = guarded_content(content, secrets.token_hex(16))
        inner = inner_content(guarded)
        self._special = [token for token in pipeline.added_tokens if token.special]
        self._allowing = _opened(content)
        self._plain = _opened(guarded)
        self._plain.encode_special_tokens = True
        self._inner = self._plain if inner == guarded else _opened(inner)
        self._inner.encode_special_tokens = True
        self._decoders = list(components(content.get("decoder")))
        self.ids: dict[str, int] = self._allowing.get_vocab(with_added_tokens=True)

    # -- text to ids -------------------------------------------------------------------------

    def parts(self, text: str, *, allow_special: bool) -> Iterator[tuple[int, int, int | None]]:
        """Yield (start, end, id) of special tokens and (start, end, None) of what is between.

        Added tokens that are not special are left to `encode_part`.
        """
        if allow_special:
            yield from self._matcher.parts(text, allow_special=True)
        elif text:
            yield 0, len(text), None

    def encode(self, text: str, *, allow_special: bool) -> bytes:
        """Return the ids of a text as uint32 bytes."""
        return _as_bytes(self._encoding(text, allow_special=allow_special).ids)

    def encode_batch(
        self, texts: Sequence[str], *, allow_special: bool, num_threads: int | None
    ) -> list[NDArray[np.uint32]]:
        """Return the ids of each text; `tokenizers` takes all cores, whatever `num_threads` is."""
        for text in texts:
            utf8(text)
        tokenizer = self._allowing if allow_special else self._plain
        encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.uint32) for encoding in encodings]

    def encode_chunks(
        self, chunks: Iterable[str], *, allow_special: bool
    ) -> Iterator[NDArray[np.uint32]]:
        """Yield the ids of one text that comes in chunks, which is put together first."""
        encoding = self._encoding("".join(chunks), allow_special=allow_special)
        yield np.array(encoding.ids, np.uint32)

    def encode_part(self, text: str, *, is_start: bool = True) -> bytes:
        """Return the ids of text in which no special token is looked for, as uint32 bytes.

        Args:
            text: a part of a text.
            is_start: whether the text starts with it; some pipelines put a space there.
        """
        return _as_bytes(self._part_encoding(text, is_start=is_start).ids)

    def encode_masked(
        self, text: str, spans: Sequence[Span], *, is_start: bool = True
    ) -> Iterator[tuple[int, bool]]:
        """Yield the ids of text without special tokens, each with whether it overlaps a span."""
        encoding = self._part_encoding(text, is_start=is_start)
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            yield token, any(first < end and last > start for first, last in spans)

    def encode_with_offsets(
        self, text: str, *, allow_special: bool
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Return the ids, uint32 (N,), and the characters each came from, int64 (N, 2).

        A token that is part of a character has the whole character; white space that a token
        holds belongs to it.
        """
        encoding = self._encoding(text, allow_special=allow_special)
        offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        return np.array(encoding.ids, np.uint32), offsets

    def _encoding(self, text: str, *, allow_special: bool) -> Any:
        utf8(text)  # raises for what no tokenizer can take
        tokenizer = self._allowing if allow_special else self._plain
        return tokenizer.encode(text, add_special_tokens=False)

    def _part_encoding(self, text: str, *, is_start: bool) -> Any:
        utf8(text)
        return (self._plain if is_start else self._inner).encode(text, add_special_tokens=False)

    @cached_property
    def _matcher(self) -> AddedTokens:
        return AddedTokens(self._special)

    # -- ids to text -------------------------------------------------------------------------

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; an id without a token stands for nothing."""
        known = [token for token in map(int, ids) if self._token(token) is not None]
        return self._allowing.decode(known, skip_special_tokens=False)

    def stream(self) -> "ForeignStream":
        """Return a decoder for ids that come one at a time."""
        falls_back = any(part["type"] == "ByteFallback" for part in self._decoders)
        return ForeignStream(
            self.decode,
            is_byte=self._is_byte_token if falls_back else lambda _: False,
            is_known=lambda token_id: self._token(token_id) is not None,
            is_steady=_only_lengthens(self._decoders),
        )

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """What each id stands for; b"" for an id without a token.

        Exact for byte-level vocabularies and byte tokens; otherwise what the decoder writes for
        the token behind another one, which is the best that any decoder lets one know.
        """
        known: list[bytes] = [b""] * (max(self.ids.values(), default=-1) + 1)
        of_token = self._bytes_of_token()
        for token, token_id in self.ids.items():
            known[token_id] = of_token(token, token_id)
        for token in self._special:
            known[token.id] = utf8(token.content)
        return known

    def _bytes_of_token(self) -> Callable[[str, int], bytes]:
        kinds = {part["type"] for part in self._decoders}
        if "ByteLevel" in kinds:
            return lambda token, _: unspell(token)
        anchor = self._anchor()
        before = self.decode(anchor)

        def behind_anchor(token: str, token_id: int) -> bytes:
            if "ByteFallback" in kinds and (byte := _BYTE_TOKEN.fullmatch(token)):
                return bytes([int(byte[1], 16)])
            return self.decode([*anchor, token_id]).removeprefix(before).encode()

        return behind_anchor

    def _anchor(self) -> list[int]:
        """Return a token that decodes to letters, whatever follows; [] when there is none."""
        for token_id in sorted(self.ids.values()):
            text = self.decode([token_id])
            if text.isalpha() and self.decode([token_id, token_id]).startswith(text):
                return [token_id]
        return []

    def _is_byte_token(self, token_id: int) -> bool:
        return _BYTE_TOKEN.fullmatch(self._token(token_id) or "") is not None

    def _token(self, token_id: int) -> str | None:
        return self._allowing.id_to_token(token_id) if 0 <= token_id < 2**32 else None


class ForeignStream:
    """Turns ids into text as they come; the pieces joined are what `decode` gives at once.

    A decoder is a function of all ids, so the ids since the last complete character are decoded
    again with each new one. Held back are U+FFFD at the end, which may be half a character; byte
    tokens at the end, which become U+FFFD one and all when a wrong one follows; and everything
    when the decoder can change text across tokens.

    Args:
        decode: ids to text.
        is_byte: whether an id is a byte token.
        is_known: whether an id has a token; one without stands for nothing.
        is_steady: whether more ids only ever lengthen the text.
    """

    def __init__(
        self,
        decode: Callable[[Iterable[int]], str],
        *,
        is_byte: Callable[[int], bool],
        is_known: Callable[[int], bool],
        is_steady: bool,
    ) -> None:
        self._decode = decode
        self._is_byte = is_byte
        self._is_known = is_known
        self._is_steady = is_steady
        self._ids: list[int] = []
        self._num_shown = 0  # characters of decode(self._ids) that were returned

    def push(self, token_id: int) -> str:
        """Return the characters that are certain with this id; "" while one is still open."""
        if not self._is_known(int(token_id)):
            return ""
        self._ids.append(int(token_id))
        if not self._is_steady:
            return ""
        num_open = sum(1 for _ in takewhile(self._is_byte, reversed(self._ids)))
        text = self._decode(self._ids[: len(self._ids) - num_open]).rstrip("\ufffd")
        new = text[self._num_shown :]
        self._num_shown += len(new)
        if new and not num_open:
            self._forget()
        return new

    def finish(self) -> str:
        """Return what is left."""
        rest = self._decode(self._ids)[self._num_shown :]
        self._ids, self._num_shown = [], 0
        return rest

    def _forget(self) -> None:
        """Keep the last id alone, as what the next one follows, when all it says is shown.

        One that says nothing but white space will not do: a decoder may strip that from a start.
        """
        whole, last = self._decode(self._ids), self._decode(self._ids[-1:])
        if len(whole) == self._num_shown and last.strip() and whole.endswith(last):
            self._ids, self._num_shown = self._ids[-1:], len(last)


def _only_lengthens(decoders: Sequence[dict[str, Any]]) -> bool:
    """Whether the text of some ids is a prefix of the text of these and more."""
    are_joined = False
    for part in decoders:
        kind = part["type"]
        if kind == "Replace":
            pattern = part["pattern"].get("String", "")
            if are_joined and len(pattern) != 1:
                return False  # it may find what lies across two tokens
        elif kind not in _LENGTHENING:
            return False
        are_joined = are_joined or kind in ("Fuse", "ByteLevel")
    return True


def _opened(content: dict[str, Any]) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(content, ensure_ascii=False))
    except Exception as error:  # the library raises nothing more precise
        raise TokenizerError(f"tokenizers cannot read this tokenizer.json: {error}") from error


def _as_bytes(ids: list[int]) -> bytes:
    return np.array(ids, np.uint32).tobytes()
