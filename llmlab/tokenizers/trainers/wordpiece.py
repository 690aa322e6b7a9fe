"""Learn a WordPiece vocabulary, the way of BERT.

A word is its characters, all but the first spelled with `##` before them; the most frequent pair
of neighbours becomes a token, of equally frequent pairs the one whose left id, then right id, is
smallest. Ids are the special tokens, the characters by code point, the continued characters by
code point, then merges as learnt; the merges themselves are not kept. The definition, in a page of
Python, is `llmlab.foundations.wordpiece`; the loop is compiled/learning.py.

Hugging Face `tokenizers` numbers the continued characters in the order of a hash map, which
changes from run to run, and with them its ties; given its order, the vocabulary here is the same.

Sources: Schuster and Nakajima 2012 (ICASSP); Wu et al., arXiv:1609.08144; Devlin et al.,
arXiv:1810.04805.
"""

import sys
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from llmlab.errors import ConfigError, DataError
from llmlab.tokenizers.compiled.learning import learn_pairs
from llmlab.track import OnProgress, silent

CONTINUATION = "##"
"""What a token that does not begin a word starts with."""

SPECIAL_TOKENS: tuple[str, ...] = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""The special tokens of BERT, in the order of their ids."""

MAX_WORD_CHARS = 100
"""A longer word is `[UNK]` to BERT, so nothing is learnt from it."""


def learn_wordpiece(
    counts: Mapping[str, int],
    *,
    vocab_size: int,
    min_frequency: int = 2,
    limit_alphabet: int | None = 1000,
    alphabet: Sequence[str] | None = None,
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
    max_word_chars: int = MAX_WORD_CHARS,
    on_progress: OnProgress = silent,
) -> list[str]:
    """Learn a vocabulary.

    A character outside the alphabet is left out of its word. Words that start with `##` could not
    be told from continuations and are left out whole, as are words that are too long.

    Args:
        counts: normalised word to how often it was seen.
        vocab_size: tokens in all; fewer come back when no pair is frequent enough.
        min_frequency: a rarer pair is not merged.
        limit_alphabet: characters kept, the most frequent ones, of equals those with the smallest
            code points; None keeps all.
        alphabet: the tokens of one character, plain and continued, in the order of their ids,
            instead of those of `limit_alphabet`.
        special_tokens: the first ids.
        max_word_chars: characters a word may have.
        on_progress: called every few hundred merges.

    Returns:
        The tokens in the order of their ids.

    Raises:
        ConfigError: `vocab_size` leaves no room for special tokens and alphabet.
        DataError: there are no words.
    """
    words = {word: count for word, count in counts.items() if _is_usable(word, max_word_chars)}
    if not words:
        raise DataError("the corpus has no words at all; give texts to learn from")
    spelled = _Spelled(words)
    if alphabet is None:
        alphabet = spelled.alphabet(limit_alphabet)
    tokens = list(dict.fromkeys([*special_tokens, *alphabet]))
    if vocab_size < len(tokens):
        raise ConfigError(
            f"vocab_size={vocab_size} is too small: {len(special_tokens)} special tokens and "
            f"{len(alphabet)} characters need {len(tokens)}; raise it or lower limit_alphabet"
        )
    symbols, starts = spelled.symbols(alphabet)
    num_merges = vocab_size - len(tokens)
    pieces = list(alphabet)
    for merges in learn_pairs(
        symbols,
        starts,
        spelled.counts,
        num_symbols=len(alphabet),
        num_merges=num_merges,
        min_frequency=min_frequency,
        reserved=_as_symbols(special_tokens, alphabet),
    ):
        pieces += _glued(pieces, merges.tolist())
        on_progress({"merge": f"{len(pieces) - len(alphabet)}/{num_merges}"})
    return tokens + pieces[len(alphabet) :]


class _Spelled:
    """Words as arrays: one row a character."""

    def __init__(self, words: Mapping[str, int]) -> None:
        self.counts = np.fromiter(words.values(), np.int64, len(words))
        lengths = np.fromiter(map(len, words), np.int64, len(words))
        codes = np.frombuffer("".join(words).encode("utf-32-le", "surrogatepass"), "<u4")
        seen = np.zeros(sys.maxunicode + 1, bool)
        seen[codes] = True
        self._chars = np.flatnonzero(seen)
        self._char_of = (np.cumsum(seen) - 1)[codes]
        self._word_of = np.repeat(np.arange(len(words)), lengths)
        self._begins = np.zeros(len(self._char_of), bool)
        self._begins[np.cumsum(lengths) - lengths] = True

    def alphabet(self, limit: int | None) -> list[str]:
        """Return the tokens of one character: plain ones, then continued ones that occur."""
        totals = np.zeros(len(self._chars), np.int64)
        np.add.at(totals, self._char_of, self.counts[self._word_of])
        kept = np.sort(np.argsort(-totals, kind="stable")[:limit])
        continued = np.intersect1d(kept, self._char_of[~self._begins])
        return [
            *(chr(char) for char in self._chars[kept]),
            *(CONTINUATION + chr(char) for char in self._chars[continued]),
        ]

    def symbols(self, alphabet: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return the words as numbers of tokens in a row, and where each one starts."""
        number = {token: at for at, token in enumerate(alphabet)}
        chars = [chr(char) for char in self._chars]
        plain = np.array([number.get(char, -1) for char in chars])
        continued = np.array([number.get(CONTINUATION + char, -1) for char in chars])
        symbols = np.where(self._begins, plain[self._char_of], continued[self._char_of])
        is_known = symbols >= 0
        lengths = np.bincount(self._word_of[is_known], minlength=len(self.counts))
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return symbols[is_known].astype(np.int32), starts


def _is_usable(word: str, max_chars: int) -> bool:
    return 0 < len(word) <= max_chars and not word.startswith(CONTINUATION)


def _glued(pieces: Sequence[str], merges: Sequence[Sequence[int]]) -> list[str]:
    """Spell merges out; a half may be one of the same merges."""
    glued: list[str] = []
    for left, right in merges:
        head, tail = (
            pieces[half] if half < len(pieces) else glued[half - len(pieces)]
            for half in (left, right)
        )
        glued.append(head + tail.removeprefix(CONTINUATION))
    return glued


def _as_symbols(tokens: Sequence[str], alphabet: Sequence[str]) -> list[list[int]]:
    """Return the special tokens that a word could spell, as numbers."""
    number = {token: at for at, token in enumerate(alphabet)}
    spelled = (
        [number.get(char if at == 0 else CONTINUATION + char) for at, char in enumerate(token)]
        for token in tokens
    )
    return [[symbol for symbol in row if symbol is not None] for row in spelled if None not in row]
