"""Decode ids one at a time, as a model makes them, never showing half a character."""

import codecs
from collections.abc import Callable


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
