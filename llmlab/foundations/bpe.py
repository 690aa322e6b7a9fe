"""Byte-pair encoding: join the most frequent pair of neighbours, again and again.

A word starts as single characters. Training counts all pairs of neighbouring tokens, makes the
most frequent one a new token, and starts over; the list of merges is the whole result. Encoding
repeats on a new word what training did to the old ones. Recounting everything for every merge
takes O(merges * text); the fast trainer (`llmlab.tokenizers.trainers.bpe`) corrects the counts.

Byte-level BPE is the same thing on words spelled in an alphabet of 256 characters, one a byte.

Sources: "A New Algorithm for Data Compression", 1994, C Users Journal 12(2); Sennrich et
al. 2016, arXiv:1508.07909, who stop at word boundaries.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

Pair = tuple[str, str]
"""Two tokens side by side."""


def train_bpe(counts: Mapping[str, int], num_merges: int, *, min_frequency: int = 2) -> list[Pair]:
    """Learn merges, best first.

    Of equally frequent pairs the one whose left token, then right token, is older wins; characters
    are older than any merge and in the order of their code points.

    Args:
        counts: word to how often it was seen.
        num_merges: merges wanted; fewer come when no pair is frequent enough.
        min_frequency: a rarer pair is not merged.
    """
    words = {tuple(word): count for word, count in counts.items()}
    age = {token: number for number, token in enumerate(sorted(set("".join(counts))))}
    merges: list[Pair] = []
    while len(merges) < num_merges:
        pairs = count_pairs(words)
        best = min(pairs, key=lambda pair: (-pairs[pair], age[pair[0]], age[pair[1]]), default=None)
        if best is None or pairs[best] < min_frequency:
            break
        merges.append(best)
        age["".join(best)] = len(age)
        words = {join(word, best): count for word, count in words.items()}
    return merges


def encode_bpe(word: str, merges: Sequence[Pair]) -> list[str]:
    """Return the tokens of a word: every merge in the order it was learnt."""
    tokens = tuple(word)
    for merge in merges:
        tokens = join(tokens, merge)
    return list(tokens)


def count_pairs(words: Mapping[tuple[str, ...], int]) -> Counter[Pair]:
    """Count the pairs of neighbouring tokens in all words."""
    pairs: Counter[Pair] = Counter()
    for word, count in words.items():
        for pair in pairwise(word):
            pairs[pair] += count
    return pairs


def join(tokens: Sequence[str], pair: Pair) -> tuple[str, ...]:
    """Replace a pair by one token wherever it stands, leftmost first."""
    joined: list[str] = []
    at = 0
    while at < len(tokens):
        width = 2 if tuple(tokens[at : at + 2]) == pair else 1
        joined.append("".join(tokens[at : at + width]))
        at += width
    return tuple(joined)
