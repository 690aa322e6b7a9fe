"""The grammar library at work on our vocabulary; the one module that imports `llguidance`.

It is loaded when the first grammar is compiled. The child process that tries grammars first
(worker.py) is a program of its own and imports the library too.
"""

from collections.abc import Callable

from llmlab.errors import MissingExtraError
from llmlab.serve.grammar.vocabulary import Vocabulary

try:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
except ImportError as error:
    raise MissingExtraError("llguidance", "serve") from error

LIMITS: dict[str, int] = {
    "step_lexer_fuel": 100_000,  # about 7 ms for one bitmask
    "step_max_items": 50_000,  # about 3 ms
    "max_lexer_states": 100_000,  # about 50 MB for one sequence
}
"""What one sequence may cost; the library ends it with an error beyond that."""

_CANONICAL_CHARS = 512


class Library:
    """Builds matchers over one vocabulary. Threads may share it.

    Args:
        vocabulary: the token table.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        table = _Table(vocabulary)
        self._tokenizer = LLTokenizer(
            TokenizerWrapper(table), eos_token=sorted(vocabulary.stop_ids)
        )
        table.longest_match = self._tokenizer.greedy_tokenize
        self._limits = LLParserLimits(
            step_lexer_fuel=LIMITS["step_lexer_fuel"],
            step_max_items=LIMITS["step_max_items"],
            max_lexer_states=LIMITS["max_lexer_states"],
            verbose_errors=False,  # the grammar itself is no part of a message
        )
        # Text that a grammar forces is put into the tokens the tokenizer would take; it cannot
        # know them where a token's bytes depend on its place.
        self._header = '%llguidance {"no_forcing": true}\n' if vocabulary.alias is not None else ""

    def matcher(self, lark: str) -> LLMatcher:
        """Return a matcher at the start of a grammar; Python threads run on meanwhile.

        Raises:
            ValueError: the library refuses the grammar.
        """
        matcher = LLMatcher(self._tokenizer, self._header + lark, log_level=0, limits=self._limits)
        if matcher.is_error():
            raise ValueError(matcher.get_error())
        return matcher


class _Table:
    """What llguidance asks of a tokenizer."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.tokens = vocabulary.tokens
        self.eos_token_id = min(vocabulary.stop_ids)
        self.bos_token_id = None
        self.special_token_ids = sorted(vocabulary.special_ids)
        self.longest_match: Callable[[str], list[int]] = lambda _: []
        self._encode = vocabulary.tokenizer.encode

    def __call__(self, data: bytes) -> list[int]:
        """Return ids whose bytes, joined, are exactly `data`; only those in front are ever used.

        They are the tokenizer's own, unless it normalises the text or adds to it.
        """
        text = data.decode()
        head, rest = text[:_CANONICAL_CHARS], text[_CANONICAL_CHARS:]
        ids = self._encode(head)
        if b"".join(self.tokens[i] for i in ids) != head.encode():
            ids = self.longest_match(head)
        return ids + self.longest_match(rest) if rest else ids
