"""What each token id adds to a text, in bytes: the bridge from our tokenizers to a grammar.

A token may spell one thing at the start of a text and another inside it: WordPiece puts a space
before words but not before the first, SentencePiece drops a space it put there itself. A grammar
must see both spellings, so such a token has a second entry, its alias, for the first place.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from llmlab.errors import ConfigError
from llmlab.tokenizers import Tokenizer


class Vocabulary:
    """The token table of a tokenizer.

    Args:
        tokenizer: its ids are the grammar's.
        stop_ids: ids that end a text, beside the tokenizer's own.

    Raises:
        ConfigError: nothing ends a text.
    """

    def __init__(self, tokenizer: Tokenizer, stop_ids: Iterable[int] = ()) -> None:
        self.tokenizer = tokenizer
        """Where the bytes come from."""
        self.size: int = tokenizer.vocab_size
        """Token ids, V."""
        self.num_words: int = -(-self.size // 32)
        """32-bit words of a bitmask."""
        known = (i for i in stop_ids if 0 <= i < self.size)
        self.stop_ids: frozenset[int] = tokenizer.stop_token_ids.union(known)
        """Ids that may come exactly where the grammar may end."""
        if not self.stop_ids:
            raise ConfigError(
                "structured output needs a token that ends a text, and the tokenizer has none; "
                "name its eos_token in tokenizer_config.json"
            )
        self.special_ids: frozenset[int] = self.stop_ids.union(tokenizer.special_tokens.values())
        """Ids that are no text, whatever their bytes."""
        self.tokens: list[bytes] = [tokenizer.token_bytes(i) for i in range(self.size)]
        """The bytes of each id, then those of the aliases; b"" for an id without a token."""
        self.alias: NDArray[np.int64] | None = self._find_aliases()
        """(V,) the entry of each id at the start of a text; None when none differs."""

    def _find_aliases(self) -> NDArray[np.int64] | None:
        alias = np.arange(self.size)
        for token_id in range(self.size):
            inside = self.tokens[token_id]
            if token_id in self.special_ids or not inside:
                continue
            first = self.tokenizer.decode([token_id])
            if first != inside.decode("utf-8", "replace"):
                alias[token_id] = len(self.tokens)
                self.tokens.append(first.encode())
        return None if len(self.tokens) == self.size else alias
