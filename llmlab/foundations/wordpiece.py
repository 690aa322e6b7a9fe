"""WordPiece: a vocabulary of word beginnings and continuations, and greedy longest match.

A token that does not begin a word is spelled with `##` before it. Encoding takes the longest token
that the word starts with, then the longest continuation, and so on; a word that cannot be written
so is one unknown token. No merges are kept: the vocabulary is the whole result.

Training joins pairs as BPE does, on `w ##o ##r ##d`. The papers choose the pair that raises the
likelihood of a language model most, and their trainer was never published; the vocabularies made
since, this one included, count pairs. The fast trainer is `llmlab.tokenizers.trainers.wordpiece`.

Sources: Schuster and Nakajima 2012, "Japanese and Korean Voice Search" (ICASSP); Wu et al. 2016,
arXiv:1609.08144; `##` and the limit on long words: Devlin et al. 2019, arXiv:1810.04805.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

Pair = tuple[str, str]
"""Two tokens side by side."""

CONTINUATION = "##"
"""What a token that does not begin a word starts with."""


def train_wordpiece(
    counts: Mapping[str, int], vocab_size: int, *, min_frequency: int = 2
) -> list[str]:
    """Learn a vocabulary: characters, continued characters, then merges as they come.

    Of equally frequent pairs the one whose left token, then right token, stands first in the
    vocabulary wins; characters and continued characters stand in the order of their code points.

    Args:
        counts: word to how often it was seen.
        vocab_size: tokens wanted; fewer come when no pair is frequent enough, more when there are
            more characters.
        min_frequency: a rarer pair is not merged.
    """
    words = {spell(word): count for word, count in counts.items()}
    continued = {token for word in words for token in word[1:]}
    vocab = [*sorted(set("".join(counts))), *sorted(continued)]
    while len(vocab) < vocab_size:
        rank = {token: number for number, token in enumerate(vocab)}
        pairs: Counter[Pair] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        best = min(
            pairs, key=lambda pair: (-pairs[pair], rank[pair[0]], rank[pair[1]]), default=None
        )
        if best is None or pairs[best] < min_frequency:
            break
        vocab.append(glue(best))
        words = {join(word, best): count for word, count in words.items()}
    return vocab


def encode_wordpiece(
    word: str, vocab: Collection[str], *, unknown: str = "[UNK]", max_chars: int = 100
) -> list[str]:
    """Return the tokens of a word: each time the longest that fits.

    Args:
        word: without white space.
        vocab: the tokens.
        unknown: what a word becomes that the vocabulary cannot write.
        max_chars: a longer word is unknown.
    """
    if len(word) > max_chars:
        return [unknown]
    tokens: list[str] = []
    start = 0
    while start < len(word):
        prefix = CONTINUATION if start else ""
        ends = range(len(word), start, -1)
        end = next((end for end in ends if prefix + word[start:end] in vocab), None)
        if end is None:
            return [unknown]
        tokens.append(prefix + word[start:end])
        start = end
    return tokens


def spell(word: str) -> tuple[str, ...]:
    """Return the characters of a word as tokens: all but the first continue it."""
    return (word[:1], *(CONTINUATION + char for char in word[1:])) if word else ()


def glue(pair: Pair) -> str:
    """Return a pair as one token: it continues a word when its left half does."""
    return pair[0] + pair[1].removeprefix(CONTINUATION)


def join(tokens: Sequence[str], pair: Pair) -> tuple[str, ...]:
    """Replace a pair by one token wherever it stands, leftmost first."""
    joined: list[str] = []
    at = 0
    while at < len(tokens):
        found = tuple(tokens[at : at + 2]) == pair
        joined.append(glue(pair) if found else tokens[at])
        at += 2 if found else 1
    return tuple(joined)
