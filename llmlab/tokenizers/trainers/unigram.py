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
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from llmlab.errors import ConfigError, DataError
from llmlab.tokenizers.compiled.characters import (
    NUM_CODE_POINTS,
    count_characters,
    find_words,
    lay_out,
)
from llmlab.tokenizers.compiled.counting import PieceCounts
from llmlab.tokenizers.compiled.expectation import (
    Scored,
    Words,
    add_best,
    add_expected,
    removal_losses,
)
from llmlab.tokenizers.compiled.substrings import (
    score_histogram,
    shared_bytes,
    sort_suffixes,
    substrings,
    suffix_buckets,
    suffix_keys,
)
from llmlab.tokenizers.compiled.trie import build_trie
from llmlab.tokenizers.decoders import SPACE_MARK
from llmlab.tokenizers.models.unigram import Unigram
from llmlab.track import OnProgress, silent

UNKNOWN_PIECE = "<unk>"

BYTE_PIECES: tuple[str, ...] = tuple(f"<0x{byte:02X}>" for byte in range(256))

_PARTS = 16
"""Words are counted in so many parts, each with sums of its own."""

_SLACK = 1.1
"""Pruning stops at so many times the pieces wanted; of these the most probable remain."""

_FIRST_BYTE_SCORE = -1.5
"""A guess at what a byte adds to the log-likelihood, before it is known."""

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
    equal ones by code point. A space in a word is written U+2581.

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
    kept = _alphabet(totals, character_coverage, limit_alphabet, wanted)
    with _Crew(num_threads or os.cpu_count() or 1) as crew:
        corpus = _Corpus.of(counts, kept, totals)
        pieces = _seeds(
            corpus, crew, seed_size=seed_size, max_chars=max_piece_chars, min_count=min_frequency
        )
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
        pieces=(*((piece, 0.0) for piece in special), *learnt),
        unk_id=0,
        byte_fallback=byte_fallback,
        unmatched=frozenset(range(len(special))),
    )


class _Crew:
    """Threads that share the work; the parts are the same however many there are."""

    def __init__(self, num_threads: int) -> None:
        self._pool = ThreadPoolExecutor(num_threads, "unigram")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()

    def run(self, work: Callable[[int, int], Any], bounds: NDArray[np.int64]) -> list[Any]:
        """Call the work with each pair of neighbouring bounds; return the results in order."""
        edges = bounds.tolist()
        return list(self._pool.map(work, edges[:-1], edges[1:]))


@dataclass(frozen=True)
class _Corpus:
    """The words as they are counted: rare characters are gone, spaces are U+0020."""

    text: NDArray[np.uint8]
    """(bytes,) the words with zeros between."""

    owners: NDArray[np.int32]
    """(bytes,) the place of each byte's word in `counts`."""

    counts: NDArray[np.int64]
    """How often each word was seen."""

    char_counts: NDArray[np.int64]
    """How often each code point was seen."""

    words: Words
    """The same, one row a stretch without rare characters."""

    parts: NDArray[np.int64]
    """(_PARTS + 1,) bounds of parts of the words with about equally many bytes."""

    num_bytes: int
    """Bytes of the text the words were counted in."""

    @classmethod
    def of(
        cls, counts: PieceCounts, kept: NDArray[np.bool_], char_counts: NDArray[np.int64]
    ) -> Self:
        """Lay out the words without the characters that are not kept."""
        text, owners = lay_out(counts.data, counts.starts, kept)
        bounds = find_words(text)
        words = Words(text, bounds, counts.counts[owners[bounds[:, 0]]])
        sizes = bounds[:, 1] - bounds[:, 0]
        return cls(
            text=text,
            owners=owners,
            counts=counts.counts,
            char_counts=char_counts,
            words=words,
            parts=_even_parts(sizes),
            num_bytes=int(sizes @ words.counts),
        )


@dataclass(frozen=True)
class _Pieces:
    """Pieces as slices of the corpus, sorted by their bytes."""

    text: NDArray[np.uint8]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    is_char: NDArray[np.bool_]
    scores: NDArray[np.float64]
    """Log-probabilities."""

    byte_score: float
    """About what a byte adds to the log-likelihood of the words."""

    def __len__(self) -> int:
        return len(self.starts)

    def only(
        self, chosen: NDArray[np.bool_], scores: NDArray[np.float64], byte_score: float
    ) -> Self:
        """Return the chosen ones, with new scores for them."""
        return replace(
            self,
            starts=self.starts[chosen],
            lengths=self.lengths[chosen],
            is_char=self.is_char[chosen],
            scores=scores,
            byte_score=byte_score,
        )

    def scored(self) -> Scored:
        """Return them in the form that compiled code takes."""
        nodes = build_trie(self.text, self.starts, self.lengths)
        scaled = np.exp(self.scores - self.byte_score * self.lengths)
        return Scored(nodes, self.scores, scaled, self.byte_score)

    def spelled(self) -> Iterator[tuple[str, float]]:
        """Yield each piece as it is written in a vocabulary, and its score."""
        raw = self.text.tobytes()
        for start, length, score in zip(
            self.starts.tolist(), self.lengths.tolist(), self.scores.tolist(), strict=True
        ):
            spelled = raw[start : start + length].decode().replace(" ", SPACE_MARK)
            yield spelled, float(np.float32(score))  # as files hold it


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


def _alphabet(
    totals: NDArray[np.int64], coverage: float, limit: int | None, wanted: int
) -> NDArray[np.bool_]:
    """Return for each code point whether it is of the alphabet."""
    if not 0 < coverage <= 1:
        raise ConfigError(f"character_coverage={coverage} is not above 0 and up to 1; try 0.9995")
    order = np.argsort(-totals, kind="stable")
    order = order[totals[order] > 0]
    if not len(order):
        raise DataError("the corpus has no words at all; give texts to learn from")
    covered = np.cumsum(totals[order])
    size = int(np.searchsorted(covered, coverage * covered[-1])) + 1
    chosen = order[:size][:limit]
    if len(chosen) > wanted:
        raise ConfigError(
            f"vocab_size leaves room for {wanted} pieces and the alphabet has {len(chosen)} "
            "characters; raise vocab_size, or lower character_coverage or limit_alphabet"
        )
    kept = np.zeros(NUM_CODE_POINTS, np.bool_)
    kept[chosen] = True
    return kept


def _seeds(
    corpus: _Corpus, crew: _Crew, *, seed_size: int, max_chars: int, min_count: int
) -> _Pieces:
    """Return all characters and the substrings with the highest count times length."""
    if corpus.text.size >= 2**31:
        raise DataError(
            f"the distinct words have {corpus.text.size} bytes, more than 2 GiB; drop rare ones "
            "(max_bytes of counting) or learn from a sample"
        )
    keys = suffix_keys(corpus.text)
    order, buckets = suffix_buckets(corpus.text, keys)
    parts = np.searchsorted(buckets, np.linspace(0, len(order), 4 * _PARTS + 1).astype(np.int64))
    parts[0], parts[-1] = 0, len(buckets) - 1
    crew.run(lambda a, b: sort_suffixes(keys, order, buckets, a, b, max_chars), parts)
    shared = np.zeros(len(order) + 1, np.uint16)
    ranks = np.linspace(0, len(order), _PARTS + 1).astype(np.int64)
    crew.run(lambda a, b: shared_bytes(corpus.text, order, a, b, max_chars, shared), ranks)
    given = (corpus.text, corpus.owners, corpus.counts, order, shared, max_chars, min_count)
    at_least = np.cumsum(score_histogram(*given)[::-1])[::-1]  # substrings by their least score
    enough = np.flatnonzero(at_least[1:] >= seed_size)
    min_score = int(enough[-1]) + 1 if len(enough) else 1
    num_chars = int((shared[:-1] == 0).sum())
    found = substrings(*given, min_score, int(at_least[min_score]) + num_chars)
    return _seed_pieces(corpus, order, found, seed_size)


def _seed_pieces(
    corpus: _Corpus, order: NDArray[np.int32], found: NDArray[np.int64], seed_size: int
) -> _Pieces:
    """Return the best substrings and every character, scored by count times length."""
    ranks, lengths, counts = found.T
    starts = order[ranks].astype(np.int64)
    begun = np.concatenate([[0], np.cumsum(corpus.text & 0xC0 != 0x80)])
    weights = counts * (begun[starts + lengths] - begun[starts])
    is_char = counts == 0
    weights[is_char] = [
        corpus.char_counts[ord(corpus.text[start : start + length].tobytes().decode())]
        for start, length in zip(starts[is_char], lengths[is_char], strict=True)
    ]
    best = np.lexsort((lengths, ranks, -weights, is_char))  # substrings first
    num_best = min(seed_size, int((~is_char).sum()))
    chosen = np.concatenate([best[:num_best], np.flatnonzero(is_char)])
    chosen = chosen[np.lexsort((lengths[chosen], ranks[chosen]))]  # as their bytes sort
    return _Pieces(
        text=corpus.text,
        starts=starts[chosen],
        lengths=lengths[chosen],
        is_char=is_char[chosen],
        scores=np.log(weights[chosen] / weights[chosen].sum()),
        byte_score=_FIRST_BYTE_SCORE,
    )


def _fitted(pieces: _Pieces, corpus: _Corpus, crew: _Crew) -> _Pieces:
    """Return the pieces that are expected at all, with probabilities from expected counts."""
    scored = pieces.scored()
    max_edges = int(pieces.lengths.max())

    def count(first: int, last: int) -> tuple[float, NDArray[np.float64]]:
        expected = np.zeros(len(pieces))
        return add_expected(corpus.words, first, last, scored, max_edges, expected), expected

    likelihood, expected = 0.0, np.zeros(len(pieces))
    for log_sum, counted in crew.run(count, corpus.parts):
        likelihood += log_sum
        expected += counted
    expected[pieces.is_char] = np.maximum(expected[pieces.is_char], _LEAST_EXPECTED)
    chosen = expected >= _LEAST_EXPECTED
    expected = expected[chosen]
    scores = _digamma(expected) - _digamma(expected.sum(keepdims=True))
    return pieces.only(chosen, scores, byte_score=likelihood / corpus.num_bytes)


def _pruned(pieces: _Pieces, corpus: _Corpus, crew: _Crew, num_left: int) -> _Pieces:
    """Return all characters and the pieces whose removal would cost the most likelihood."""
    scored = pieces.scored()

    def count(first: int, last: int) -> NDArray[np.int64]:
        used = np.zeros(len(pieces), np.int64)
        add_best(corpus.words, first, last, scored, used)
        return used

    used = np.zeros(len(pieces), np.int64)
    for counted in crew.run(count, corpus.parts):
        used += counted
    losses = np.empty(len(pieces))
    given = (pieces.text, pieces.starts, pieces.lengths)
    crew.run(
        lambda first, last: removal_losses(*given, first, last, scored, used, losses),
        np.linspace(0, len(pieces), _PARTS + 1).astype(np.int64),
    )
    order = np.argsort(-losses, kind="stable")[: max(num_left, int(pieces.is_char.sum()))]
    chosen = np.zeros(len(pieces), np.bool_)
    chosen[order] = losses[order] > -np.inf
    return pieces.only(chosen, pieces.scores[chosen], byte_score=pieces.byte_score)


def _even_parts(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return bounds of parts with about the same sum: (_PARTS + 1,)."""
    done = np.concatenate([[0], np.cumsum(sizes)])
    bounds = np.searchsorted(done, np.linspace(0, done[-1], _PARTS + 1))
    bounds[0], bounds[-1] = 0, len(sizes)
    return bounds.astype(np.int64)


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
