"""BPE-dropout: the frequencies of `tokenizers`, and its two ends."""

from collections import Counter
from random import Random

import pytest
from scipy.stats import chi2
from tokenizers import models

from llmlab.errors import ConfigError
from llmlab.tokenizers.models.bpe import BPE

TOKENS = ("l", "o", "w", "e", "r", "lo", "er", "low", "lower", "wer", "we", "ow")
MERGES = (("l", "o"), ("e", "r"), ("lo", "w"), ("low", "er"), ("w", "er"), ("w", "e"), ("o", "w"))
VOCAB = {token: number for number, token in enumerate(TOKENS)}
SAMPLES = 20_000


def model() -> BPE:
    return BPE(VOCAB, MERGES, whole_words={})


@pytest.mark.parametrize("dropout", [0.1, 0.4, 0.8])
@pytest.mark.parametrize("piece", ["lower", "lowlower"])
def test_cuts_are_as_frequent_as_with_tokenizers(piece, dropout):
    # Two samples of the same size from one distribution: the sum of (n - m)^2 / (n + m) over the
    # cuts follows chi-square. Theirs has no seed, so the level is one in 10^9.
    ours, rng = model(), Random(0)
    theirs = models.BPE(VOCAB, list(MERGES), dropout=dropout)
    found = Counter(tuple(ours.encode_with_dropout(piece, dropout, rng)) for _ in range(SAMPLES))
    expected = Counter(tuple(t.id for t in theirs.tokenize(piece)) for _ in range(SAMPLES))
    common = [cut for cut in found | expected if found[cut] + expected[cut] >= 20]
    total = sum((found[cut] - expected[cut]) ** 2 / (found[cut] + expected[cut]) for cut in common)
    assert len(common) > 2
    assert total < chi2.ppf(1 - 1e-9, len(common) - 1)


def test_one_merge_is_dropped_as_often_as_it_should_be():
    # The standard deviation of the count is 65.
    pair = BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")], whole_words={})
    rng = Random(0)
    kept = sum(pair.encode_with_dropout("ab", 0.3, rng) == [2] for _ in range(SAMPLES))
    assert abs(kept - 0.7 * SAMPLES) < 4 * 65


def test_both_ends():
    rng = Random(0)
    ours = BPE(VOCAB, MERGES, whole_words={"owe": 99, "lower": 8})
    for piece in ("lower", "lowlower", "owe", "l", "", "x", "lol"):
        assert ours.encode_with_dropout(piece, 0, rng) == ours.encode(piece)
        chars = [VOCAB[char] for char in piece if char in VOCAB]
        assert ours.encode_with_dropout(piece, 1, rng) == chars


def test_the_same_seed_gives_the_same_cuts():
    def cuts(seed):
        rng = Random(seed)
        return [model().encode_with_dropout("lowerlower", 0.5, rng) for _ in range(20)]

    assert cuts(1) == cuts(1) != cuts(2)


@pytest.mark.parametrize("dropout", [-0.1, 1.5, float("nan")])
def test_no_probability(dropout):
    with pytest.raises(ConfigError, match=f"dropout={dropout} is not a probability; take 0 to 1"):
        model().encode_with_dropout("lower", dropout, Random(0))
