"""Learn a Unigram vocabulary: many substrings, then fewer and fewer of them.

It starts from frequent substrings of the words. Expectation-maximisation fits their probabilities;
then the pieces whose removal costs the least likelihood go, a quarter at a time, until about as
many are left as are wanted, and the most probable of these remain. Characters always stay.

Every step is over distinct words with their counts, in threads over a fixed partition whose
results are added in order, so the result does not depend on how many threads there are. Memory
grows with the distinct words (about 25 bytes a byte of them), not with the text. Not here:
counting words (compiled/counting.py), segmenting with the result (models/unigram.py).

Sources: Kudo, arXiv:1804.10959, section 3.2; the digamma of the M-step is that of variational
Bayes with a sparse prior, Liang and Klein, "Structured Bayesian nonparametric models", 2007.
"""

import os
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from llmlab.errors import ConfigError
from llmlab.tokenizers.compiled.characters import count_characters
from llmlab.tokenizers.compiled.counting import PieceCounts
from llmlab.tokenizers.compiled.expectation import add_best, add_expected, removal_losses
from llmlab.tokenizers.models.unigram import Unigram
from llmlab.tokenizers.trainers.unigram_seeds import (
    NUM_PARTS,
    Corpus,
    Crew,
    Pieces,
    Suffixes,
    find_alphabet,
    find_seeds,
)
from llmlab.track import OnProgress, silent

UNKNOWN_PIECE = "<unk>"

BYTE_PIECES: tuple[str, ...] = tuple(f"<0x{byte:02X}>" for byte in range(256))

_NEVER = -10_000.0
"""Score of the unknown piece and the bytes. SentencePiece never looks for them in a text;
`tokenizers` looks for every piece, and takes none with such a score."""

_SLACK = 1.1
"""Pruning stops at so many times the pieces wanted; of these the most probable remain."""

_LEAST_EXPECTED = 0.5
"""A piece expected less often goes; a character counts as expected so often."""


def learn_unigram(
    counts: PieceCounts | Mapping[str, int],
    *,
    vocab_size: int,
    seed_size: int = 1_000_000,
    max_piece_chars: int = 16,
    shrinking_factor: float = 0.75,
    num_sub_iterations: int = 2,
    character_coverage: float = 0.9995,
    limit_alphabet: int | None = None,
    byte_fallback: bool = True,
    min_frequency: int = 2,
    num_threads: int | None = None,
    on_progress: OnProgress = silent,
) -> Unigram:
    """Learn pieces and their log-probabilities.

    Ids: the unknown piece, with byte fallback the 256 bytes, then pieces by falling probability,
    equal ones by code point. A space in a word is written U+2581. Scores add up in float64, as
    they will where tokenizer.json is read.

    Args:
        counts: words, each with the space before it at its front, and how often each was seen.
        vocab_size: pieces in all; fewer come back when the words hold no more.
        seed_size: substrings to start from.
        max_piece_chars: characters of the longest piece.
        shrinking_factor: share of the pieces that each pruning leaves.
        num_sub_iterations: steps of expectation-maximisation before each pruning.
        character_coverage: share of the text that the alphabet must cover, the most frequent
            characters first, of equals those with the smaller code point. Other characters part
            their word in two.
        limit_alphabet: the most characters that the alphabet may have; None sets no limit.
        byte_fallback: whether other characters become their bytes, which then are pieces too.
        min_frequency: substrings seen less often are not considered.
        num_threads: None for the number of cores; the result is the same with any number.
        on_progress: called after every step.

    Raises:
        ConfigError: a number is out of its range, or `vocab_size` leaves no room for characters.
        DataError: there are no words, or more than 2 GiB of distinct ones.
    """
    _check(vocab_size, seed_size, max_piece_chars, shrinking_factor, num_sub_iterations)
    if not isinstance(counts, PieceCounts):
        counts = PieceCounts.from_mapping(counts)
    special = (UNKNOWN_PIECE, *(BYTE_PIECES if byte_fallback else ()))
    wanted = vocab_size - len(special)
    totals = count_characters(counts.data, counts.starts, counts.counts)
    kept = find_alphabet(totals, character_coverage, limit_alphabet, wanted)
    with Crew(num_threads or os.cpu_count() or 1) as crew:
        suffixes = Suffixes.of(counts, kept, totals, max_piece_chars, crew)
        pieces = find_seeds(suffixes, crew, seed_size=seed_size, min_count=min_frequency)
        corpus = Corpus.of(suffixes)
        del suffixes  # the larger part of the memory
        on_progress({"seeds": len(pieces)})
        goal = int(wanted * _SLACK)
        while True:
            for _ in range(num_sub_iterations):
                pieces = _fitted(pieces, corpus, crew)
                on_progress({"pieces": len(pieces), "nats per byte": -pieces.byte_score})
            if len(pieces) <= goal:
                break
            pieces = _pruned(pieces, corpus, crew, max(goal, int(shrinking_factor * len(pieces))))
        found = sorted(pieces.spelled(), key=lambda entry: (len(entry[0]) > 1, -entry[1], entry[0]))
    learnt = sorted(found[:wanted], key=lambda entry: (-entry[1], entry[0]))
    return Unigram(
        pieces=(*((piece, _NEVER) for piece in special), *learnt),
        unk_id=0,
        byte_fallback=byte_fallback,
        unmatched=frozenset(range(len(special))),
        single_precision=False,
    )


def _check(
    vocab_size: int,
    seed_size: int,
    max_piece_chars: int,
    shrinking_factor: float,
    num_sub_iterations: int,
) -> None:
    if seed_size < vocab_size:
        raise ConfigError(
            f"seed_size={seed_size} is less than vocab_size={vocab_size}; start from ten times "
            "as many substrings or more"
        )
    if not 0 < shrinking_factor < 1:
        raise ConfigError(f"shrinking_factor={shrinking_factor} is not between 0 and 1; try 0.75")
    if not 1 <= max_piece_chars <= 1024:
        raise ConfigError(f"max_piece_chars={max_piece_chars} is not from 1 to 1024; try 16")
    if num_sub_iterations < 1:
        raise ConfigError(f"num_sub_iterations={num_sub_iterations} is less than 1; try 2")


def _fitted(pieces: Pieces, corpus: Corpus, crew: Crew) -> Pieces:
    """Return the pieces that are expected at all, with probabilities from expected counts."""
    scored = pieces.scored()
    max_len = int(pieces.lengths.max())

    def count(first: int, last: int) -> tuple[float, NDArray[np.float64]]:
        expected = np.zeros(len(pieces))
        return add_expected(corpus.words, first, last, scored, max_len, expected), expected

    likelihood, expected = 0.0, np.zeros(len(pieces))
    for log_sum, counted in crew.run(count, corpus.parts):
        likelihood += log_sum
        expected += counted
    expected[pieces.is_char] = np.maximum(expected[pieces.is_char], _LEAST_EXPECTED)
    chosen = expected >= _LEAST_EXPECTED
    expected = expected[chosen]
    scores = _digamma(expected) - _digamma(expected.sum(keepdims=True))
    return pieces.only(chosen, scores, byte_score=likelihood / corpus.num_bytes)


def _pruned(pieces: Pieces, corpus: Corpus, crew: Crew, num_left: int) -> Pieces:
    """Return all characters and the pieces whose removal would cost the most likelihood."""
    scored = pieces.scored()
    max_len = int(pieces.lengths.max())

    def count(first: int, last: int) -> NDArray[np.int64]:
        used = np.zeros(len(pieces), np.int64)
        add_best(corpus.words, first, last, scored, max_len, used)
        return used

    used = np.zeros(len(pieces), np.int64)
    for counted in crew.run(count, corpus.parts):
        used += counted
    losses = np.empty(len(pieces))
    given = (pieces.text, pieces.starts, pieces.lengths)
    crew.run(
        lambda first, last: removal_losses(*given, first, last, scored, used, losses),
        np.linspace(0, len(pieces), NUM_PARTS + 1).astype(np.int64),
    )
    order = np.argsort(-losses, kind="stable")[: max(num_left, int(pieces.is_char.sum()))]
    chosen = np.zeros(len(pieces), np.bool_)
    chosen[order] = losses[order] > -np.inf
    return pieces.only(chosen, pieces.scores[chosen], byte_score=pieces.byte_score)


def _digamma(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the derivative of the logarithm of the gamma function, for x > 0.

    The recurrence brings x above 8, where the asymptotic series (Abramowitz and Stegun 6.3.18)
    is exact to 1e-11.
    """
    x = x.copy()
    result = np.zeros_like(x)
    while (small := x < 8).any():
        result[small] -= 1 / x[small]
        x[small] += 1
    square = 1 / (x * x)
    series = square * (1 / 12 - square * (1 / 120 - square * (1 / 252 - square / 240)))
    return result + np.log(x) - 0.5 / x - series
