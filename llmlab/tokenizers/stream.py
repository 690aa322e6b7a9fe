"""Decode ids one at a time, as a model makes them, never showing half a character."""

import codecs
from collections.abc import Callable


class StreamDecoder:
    """Turns ids into text as they come; the pieces joined are what `decode` gives at once.

    Args:
        token_bytes: id to the bytes it stands for.
    """

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Return the characters that this id completes; "" while one is still open."""
        return self._utf8.decode(self._token_bytes(token_id))

    def finish(self) -> str:
        """Return what is left: U+FFFD for a character that was never completed, mostly ""."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest
