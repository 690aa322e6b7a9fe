"""Log-probabilities as OpenAI's two routes write them.

Not here: computing them (the engine reports them before temperature, penalties and bias).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from llmlab.serve.deltas import TokenLogprob
from llmlab.tokenizers import Tokenizer

_LOWEST = -9999.0
"""What OpenAI writes for a token with no probability; JSON has no minus infinity."""


def token_text(token_bytes: bytes) -> str:
    r"""Return a token as text, or as `bytes:\xe2\x82` when it is only a part of a character.

    The second form keeps different tokens different where U+FFFD would make them the same.
    """
    try:
        return token_bytes.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token_bytes)


def chat_entries(tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Return `logprobs.content` of a chat choice."""
    return [
        {**_chat_entry(token), "top_logprobs": [_chat_entry(top) for top in token.top]}
        for token in tokens
    ]


def _chat_entry(token: TokenLogprob) -> dict[str, Any]:
    return {
        "token": token_text(token.token_bytes),
        "logprob": max(token.logprob, _LOWEST),
        "bytes": list(token.token_bytes),
    }


class CompletionLogprobs:
    """Writes `logprobs` of a completion choice piece by piece: four lists, one entry a token.

    `text_offset` is where a token's text begins in the text of the choice, in characters; a token
    that completes a character begins where the character does, and one that is not shown (the
    prompt's BOS, a stop token) has no width.

    Args:
        tokenizer: whose tokens these are.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._hidden = frozenset(tokenizer.special_tokens.values())
        self._decoder = tokenizer.stream()
        self._end = 0

    def prompt(
        self, ids: Sequence[int], entries: Sequence[TokenLogprob | None], *, num_hidden: int
    ) -> dict[str, list[Any]]:
        """Return the lists of an echoed prompt; the first token, which nothing predicts, has null.

        Args:
            ids: the prompt.
            entries: one for each id.
            num_hidden: ids at the beginning whose text is not part of the echo.
        """
        shown = [number >= num_hidden for number in range(len(ids))]
        lists = self._lists(ids, entries, shown)
        self._end += len(self._decoder.finish())
        self._decoder = self._tokenizer.stream()
        return lists

    def generated(self, entries: Sequence[TokenLogprob]) -> dict[str, list[Any]]:
        """Return the lists of tokens just generated."""
        ids = [entry.token_id for entry in entries]
        return self._lists(ids, entries, [token_id not in self._hidden for token_id in ids])

    def _lists(
        self,
        ids: Sequence[int],
        entries: Sequence[TokenLogprob | None],
        shown: Sequence[bool],
    ) -> dict[str, list[Any]]:
        offsets = []
        for token_id, is_shown in zip(ids, shown, strict=True):
            offsets.append(self._end)
            if is_shown:
                self._end += len(self._decoder.push(token_id))
        return {
            "tokens": [token_text(self._tokenizer.token_bytes(token_id)) for token_id in ids],
            "token_logprobs": [None if e is None else max(e.logprob, _LOWEST) for e in entries],
            "top_logprobs": [None if e is None else _top(e) for e in entries],
            "text_offset": offsets,
        }


def _top(entry: TokenLogprob) -> dict[str, float]:
    """Return the alternatives and the token itself, each under a key of its own.

    Two token ids can have the same text (a special token and its spelling); the later one, less
    likely, then gets its id as key.
    """
    top: dict[str, float] = {}
    ids: set[int] = set()
    for token in (*entry.top, entry):
        if token.token_id not in ids:
            ids.add(token.token_id)
            text = token_text(token.token_bytes)
            key = f"token_id:{token.token_id}" if text in top else text
            top[key] = max(token.logprob, _LOWEST)
    return top


def joined(pieces: Sequence[Mapping[str, list[Any]]]) -> dict[str, list[Any]]:
    """Return the lists of several pieces, each appended to the one before."""
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    return {name: [item for piece in pieces for item in piece[name]] for name in names}
