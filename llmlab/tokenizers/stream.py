"""Decode ids one at a time, as a model makes them, never showing half a character."""

import codecs
from collections.abc import Callable, Container
from typing import Protocol


class StreamDecoder:
    """Turns ids into text as they come; the pieces joined are what `decode` gives at once.

    Args:
        token_bytes: id to the bytes it stands for.
        first_bytes: the same for the id that starts the text.
    """

    def __init__(
        self, token_bytes: Callable[[int], bytes], first_bytes: Callable[[int], bytes]
    ) -> None:
        self._token_bytes = token_bytes
        self._first_bytes = first_bytes
        self._at_start = True
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Return the characters that this id completes; "" while one is still open."""
        data = self._token_bytes(token_id)
        if self._at_start and data:
            data, self._at_start = self._first_bytes(token_id), False
        return self._utf8.decode(data)

    def finish(self) -> str:
        """Return what is left: U+FFFD for a character that was never completed, mostly ""."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        self._at_start = True
        return rest


class Stream(Protocol):
    """Anything that decodes ids one at a time."""

    def push(self, token_id: int) -> str:
        """Return the characters that this id completes."""
        ...

    def finish(self) -> str:
        """Return what is left."""
        ...


class SkippingStream:
    """A stream for which some ids are not there.

    Args:
        stream: decodes the others.
        skipped: ids that stand for nothing.
    """

    def __init__(self, stream: Stream, skipped: Container[int]) -> None:
        self._stream = stream
        self._skipped = skipped

    def push(self, token_id: int) -> str:
        """Return the characters that this id completes; "" for one that is skipped."""
        return "" if token_id in self._skipped else self._stream.push(token_id)

    def finish(self) -> str:
        """Return what is left."""
        return self._stream.finish()
