"""Token ids to text, one at a time: never half a character, never a part of a stop string.

Not here: stop tokens (engine.py), the decoder itself (llmlab.tokenizers).
"""

from llmlab.tokenizers import Tokenizer


class TextStream:
    """The text of one request.

    What may become a stop string is held back until it is one or cannot be one any more, so that
    the pieces, concatenated, are the text before the stop string. Of several stop strings the one
    complete first counts, so that the result does not depend on where tokens begin. Special tokens
    have no text.

    Args:
        tokenizer: where the text of a token comes from.
        stop: strings that end the text.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = ()) -> None:
        self._decoder = tokenizer.stream(skip_special_tokens=True)
        self._stop = stop
        self._held = ""

    def push(self, token_id: int, *, may_stop: bool = True) -> tuple[str, bool]:
        """Take one token.

        Args:
            token_id: the token.
            may_stop: whether a stop string counts in this token's text.

        Returns:
            The text that is certain now, and whether a stop string ended it.
        """
        piece = self._decoder.push(token_id)
        if not may_stop:
            return piece, False
        return self._search(piece)

    def finish(self) -> tuple[str, bool]:
        """Return what was held back, and whether a stop string ended it after all."""
        text, stopped = self._search(self._decoder.finish())
        if not stopped:
            text, self._held = text + self._held, ""
        return text, stopped

    def _search(self, piece: str) -> tuple[str, bool]:
        if not self._stop:
            return piece, False
        text = self._held + piece
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)[1]], True
        keep = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that `stop` starts with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if stop.startswith(text[-n:])), 0)
