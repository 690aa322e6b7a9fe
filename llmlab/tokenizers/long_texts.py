"""One text that may be longer than memory, encoded as it arrives in chunks of any size.

The ids are those of the whole text. Of what has arrived, that much is held back as could still
change: the end of the text that may be the beginning of an added token, the characters that marks
to come may combine with, and the last pre-token or two. Not here: the encoding itself (bulk.py),
finding added tokens (added_tokens.py).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from llmlab.tokenizers.added_tokens import AddedTokens
from llmlab.tokenizers.alphabet import utf8
from llmlab.tokenizers.bulk import BulkBPE

_GATHERED_CHARS = 2**22
"""Chunks are taken together up to this size, so that all cores have work."""

_FIRST_MARK = "\u0300"
"""No character below this one combines with what stands before it."""


def encode_chunks(
    chunks: Iterable[str],
    bulk: BulkBPE,
    added: AddedTokens,
    *,
    allow_special: bool = False,
    normalize: Callable[[str], str] | None = None,
    gathered_chars: int = _GATHERED_CHARS,
) -> Iterator[NDArray[np.uint32]]:
    """Yield arrays whose concatenation is the ids of the text.

    Memory: a small multiple of `gathered_chars`, and of the longest stretch without a place to
    cut: one pre-token, or with `normalize` text without a character below U+0300 (a space, say).

    Args:
        chunks: the text in order, cut anywhere between two characters.
        bulk: encodes what lies between added tokens.
        added: finds added tokens, in the text as it came.
        allow_special: read special tokens in the text as such; otherwise they are text.
        normalize: what is done to text between added tokens, if anything; it may look at no more
            than a character and the marks after it, as Unicode forms do.
        gathered_chars: encode whenever so much has arrived.

    Raises:
        TokenizerError: the text has a lone surrogate.
    """
    opened = _Opened(bulk, normalize)
    text = ""
    for chunk, is_last in _gathered(chunks, gathered_chars):
        text += chunk
        settled = len(text) if is_last else added.settled(text, allow_special=allow_special)
        parts: list[bytes | int] = []
        done = 0
        for start, end, token in added.parts(text, allow_special=allow_special):
            if token is not None and end <= settled:
                parts += [opened.close(), token]
                done = end
            elif token is None and (end < settled or is_last):
                opened.add(text[start:end])
                done = end
            else:
                done = opened.extend(text, start, min(end, settled)) if token is None else start
                break
        text = text[done:]
        parts.append(opened.close() if is_last else opened.cut())
        yield encode_parts(parts, bulk)


def encode_parts(parts: Sequence[bytes | int], bulk: BulkBPE) -> NDArray[np.uint32]:
    """Return the ids of a text given as UTF-8 between added tokens and the ids of those."""
    texts = [part for part in parts if isinstance(part, bytes)]
    encoded = iter(bulk.encode_many(texts))
    arrays = [
        np.array([part], np.uint32) if isinstance(part, int) else next(encoded) for part in parts
    ]
    return arrays[0] if len(arrays) == 1 else np.concatenate([np.empty(0, np.uint32), *arrays])


class _Opened:
    """Text since the last added token that is normalised but not yet encoded."""

    def __init__(self, bulk: BulkBPE, normalize: Callable[[str], str] | None) -> None:
        self._bulk = bulk
        self._normalize = normalize
        self._data = b""
        self._look_again = 0

    def add(self, text: str) -> None:
        """Take text that is sure to end where it does, or to go on with no mark."""
        self._data += utf8(self._normalize(text) if self._normalize else text)

    def close(self) -> bytes:
        """Give everything, as an added token or nothing follows."""
        data, self._data, self._look_again = self._data, b"", 0
        return data

    def extend(self, text: str, start: int, end: int) -> int:
        """Take text that goes on after `end`, as far as it is certain, and return how far."""
        if self._normalize:
            while end > start and (end == len(text) or text[end] >= _FIRST_MARK):
                end -= 1
        self.add(text[start:end])
        return end

    def cut(self) -> bytes:
        """Give what no text to come can change."""
        if len(self._data) < self._look_again:
            return b""
        place = self._bulk.safe_cut(self._data)
        data, self._data = self._data[:place], self._data[place:]
        # Text without a place to cut is looked at again when it has doubled: no quadratic time.
        self._look_again = 0 if place else 2 * len(self._data)
        return data


def _gathered(chunks: Iterable[str], num_chars: int) -> Iterator[tuple[str, bool]]:
    """Yield larger chunks, each with whether it is the last; there always is one."""
    held: list[str] = []
    size = 0
    for chunk in chunks:
        held.append(chunk)
        size += len(chunk)
        if size >= num_chars:
            yield "".join(held), False
            held, size = [], 0
    yield "".join(held), True
