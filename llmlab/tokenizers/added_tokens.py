"""Added tokens: pieces of text that are one token whatever the merges say.

Special ones (`<|im_end|>`) steer the model; user text must not forge them, so they are matched
only where the caller allows it. The others are ordinary vocabulary and always matched. Of the
flags of tokenizer.json, `lstrip` and `rstrip` (take the white space beside) are honoured,
`normalized` is kept but matching is on the text as it came, and `single_word` is not supported.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmlab.errors import TokenizerError


@dataclass(frozen=True)
class AddedToken:
    """One added token, with the fields of `added_tokens` in tokenizer.json."""

    id: int
    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = True


class AddedTokens:
    """Finds added tokens in text.

    Args:
        tokens: in any order.

    Raises:
        TokenizerError: a token is empty or has the flag `single_word`.
    """

    def __init__(self, tokens: Sequence[AddedToken]) -> None:
        for token in tokens:
            if not token.content or token.single_word:
                problem = "with single_word" if token.content else "that is empty"
                raise TokenizerError(
                    f"added token {token.content!r} (id {token.id}) {problem} is not supported yet"
                )
        self._ids = {token.content: token.id for token in tokens}
        ordinary = [token for token in tokens if not token.special]
        self._ordinary = _matcher(ordinary)
        self._all = _matcher(tokens)
        self._longest_ordinary = max((len(token.content) for token in ordinary), default=0)
        self._longest = max((len(token.content) for token in tokens), default=0)
        self._take_space = any(token.lstrip or token.rstrip for token in tokens)

    def parts(self, text: str, *, allow_special: bool) -> Iterator[tuple[int, int, int | None]]:
        """Yield (start, end, id) of every added token and (start, end, None) of what is between.

        The leftmost match wins, then the longest token. Positions count characters.
        """
        matcher = self._all if allow_special else self._ordinary
        at = 0
        for match in matcher.finditer(text) if matcher else ():
            if match.start() > at:
                yield at, match.start(), None
            at = match.end()
            yield match.start(), at, self._ids[match[match.lastindex or 0]]
        if at < len(text):
            yield at, len(text), None

    def settled(self, text: str, *, allow_special: bool) -> int:
        """Return the place up to which `parts` stay what they are, whatever text follows.

        A part that ends there or before is final. Text between added tokens that goes on beyond
        is, up to there, in no added token.
        """
        end = max(len(text) - (self._longest if allow_special else self._longest_ordinary), 0)
        return len(text[:end].rstrip()) if self._take_space else end


def _matcher(tokens: Sequence[AddedToken]) -> re.Pattern[str] | None:
    if not tokens:
        return None
    longest_first = sorted(tokens, key=lambda token: -len(token.content))
    return re.compile("|".join(map(_expression, longest_first)))


def _expression(token: AddedToken) -> str:
    before, behind = r"\s*" * token.lstrip, r"\s*" * token.rstrip
    return f"{before}({re.escape(token.content)}){behind}"
