"""The two simplest vocabularies: characters, and whole words.

Both keep what is most frequent, of equals what is first by code point, and send the rest to the
unknown token. A vocabulary of characters is small and its texts are long; one of words is the
other way round, and no size is enough. Every method between the two is a bargain over this.
Ids are the special tokens, then entries by frequency: the order of the WordLevel trainer of
Hugging Face `tokenizers`. Not here: cutting text into words (splits.py).
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from llmlab.errors import ConfigError, DataError

UNKNOWN = "[UNK]"
"""What stands for everything that is not in the vocabulary."""


def learn_words(
    counts: Mapping[str, int],
    *,
    vocab_size: int,
    min_frequency: int = 1,
    special_tokens: Sequence[str] = (UNKNOWN,),
) -> list[str]:
    """Return the most frequent words, the special tokens before them.

    Args:
        counts: word to how often it was seen.
        vocab_size: tokens in all; fewer come back when there are not as many words.
        min_frequency: a rarer word is left out.
        special_tokens: the first ids.

    Raises:
        ConfigError: `vocab_size` leaves no room beside the special tokens.
        DataError: there are no words.
    """
    room = vocab_size - len(special_tokens)
    if room < 1:
        raise ConfigError(
            f"vocab_size={vocab_size} leaves no room beside {len(special_tokens)} special tokens; "
            f"give at least {len(special_tokens) + 1}"
        )
    special = frozenset(special_tokens)
    frequent = (
        word for word, count in counts.items() if count >= min_frequency and word not in special
    )
    kept = sorted(frequent, key=lambda word: (-counts[word], word))[:room]
    if not kept:
        raise DataError(
            f"the corpus has nothing that was seen min_frequency={min_frequency} times; "
            "give more text"
        )
    return [*special_tokens, *kept]


def learn_characters(
    counts: Mapping[str, int],
    *,
    vocab_size: int,
    min_frequency: int = 1,
    special_tokens: Sequence[str] = (UNKNOWN,),
) -> list[str]:
    """Return the most frequent characters (code points), the special tokens before them.

    Args:
        counts: word, or any piece of text, to how often it was seen.
        vocab_size: tokens in all; fewer come back when there are not as many characters.
        min_frequency: a rarer character is left out.
        special_tokens: the first ids.

    Raises:
        ConfigError: `vocab_size` leaves no room beside the special tokens.
        DataError: there is no text.
    """
    chars: Counter[str] = Counter()
    for piece, count in counts.items():
        for char in piece:
            chars[char] += count
    return learn_words(
        chars, vocab_size=vocab_size, min_frequency=min_frequency, special_tokens=special_tokens
    )
