"""What learning a Unigram vocabulary starts from: words laid out, and many substrings of them.

The substrings are those of two characters and more with the highest count times length, found in
the sorted suffixes of all words, and every character of the alphabet. Not here: which of them
remain (unigram.py).

Source: Kudo, arXiv:1804.10959, section 3.2.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from llmlab.errors import ConfigError, DataError
from llmlab.tokenizers.compiled.characters import NUM_CODE_POINTS, lay_out
from llmlab.tokenizers.compiled.counting import PieceCounts
from llmlab.tokenizers.compiled.expectation import Scored, Words
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

NUM_PARTS = 16
"""Work is done in so many parts, each with sums of its own, however many threads there are."""

_FIRST_BYTE_SCORE = -1.5
"""A guess at what a byte adds to the log-likelihood, before it is known."""


class Crew:
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
class Suffixes:
    """The words as they are counted, and what begins at each of their characters, sorted."""

    text: NDArray[np.uint8]
    """(bytes,) the words with zeros between: rare characters are gone, spaces are U+0020."""

    owners: NDArray[np.int32]
    """(bytes,) the place of each byte's word in `counts`."""

    counts: NDArray[np.int64]
    """How often each word was seen."""

    char_counts: NDArray[np.int64]
    """How often each code point was seen."""

    order: NDArray[np.int32]
    """Places in the text, sorted by what begins there as far as pieces may be long."""

    max_chars: int
    """Characters of the longest piece."""

    @classmethod
    def of(
        cls,
        counts: PieceCounts,
        kept: NDArray[np.bool_],
        char_counts: NDArray[np.int64],
        max_chars: int,
        crew: Crew,
    ) -> Self:
        """Lay out the words without the characters that are not kept, and sort."""
        text, owners = lay_out(counts.data, counts.starts, kept)
        if text.size >= 2**31:
            raise DataError(
                f"the distinct words have {text.size} bytes, more than 2 GiB; drop rare ones "
                "(max_bytes of counting) or learn from a sample"
            )
        keys = suffix_keys(text)
        order, buckets = suffix_buckets(text, keys)
        parts = np.searchsorted(buckets, _even_bounds(len(order), 4 * NUM_PARTS))
        parts[0], parts[-1] = 0, len(buckets) - 1
        crew.run(lambda a, b: sort_suffixes(keys, order, buckets, a, b, max_chars), parts)
        return cls(text, owners, counts.counts, char_counts, order, max_chars)


@dataclass(frozen=True)
class Corpus:
    """The words as pieces are fitted to them."""

    words: Words
    """The stretches without rare characters, in the order of their bytes."""

    parts: NDArray[np.int64]
    """(NUM_PARTS + 1,) bounds of parts of the words with about equally many bytes."""

    num_bytes: int
    """Bytes of the text the words were counted in."""

    @classmethod
    def of(cls, suffixes: Suffixes) -> Self:
        """Take the suffixes that are whole words."""
        text, order = suffixes.text, suffixes.order
        starts = order[text[order - 1] == 0].astype(np.int64)  # the last byte is a zero, too
        zeros = np.flatnonzero(text == 0)
        bounds = np.stack([starts, zeros[np.searchsorted(zeros, starts)]], axis=1)
        sizes = bounds[:, 1] - bounds[:, 0]
        words = Words(text, bounds, suffixes.counts[suffixes.owners[starts]])
        done = np.concatenate([[0], np.cumsum(sizes)])
        parts = np.searchsorted(done, _even_bounds(int(done[-1]), NUM_PARTS))
        parts[0], parts[-1] = 0, len(sizes)
        return cls(words, parts, int(sizes @ words.counts))


@dataclass(frozen=True)
class Pieces:
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
        with np.errstate(over="ignore"):  # words with what is too large are done in logarithms
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


def find_alphabet(
    totals: NDArray[np.int64], coverage: float, limit: int | None, wanted: int
) -> NDArray[np.bool_]:
    """Return for each code point whether it is of the alphabet."""
    if not 0 < coverage <= 1:
        raise ConfigError(f"character_coverage={coverage} is not above 0 and up to 1; try 0.9995")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit_alphabet={limit} is less than 1; leave it out for no limit")
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


def find_seeds(suffixes: Suffixes, crew: Crew, *, seed_size: int, min_count: int) -> Pieces:
    """Return all characters and the substrings with the highest count times length."""
    text, order, max_chars = suffixes.text, suffixes.order, suffixes.max_chars
    shared = np.zeros(len(order) + 1, np.uint16)
    ranks = _even_bounds(len(order), NUM_PARTS)
    crew.run(lambda a, b: shared_bytes(text, order, a, b, max_chars, shared), ranks)
    given = (text, suffixes.owners, suffixes.counts, order, shared, max_chars, min_count)
    begins = np.flatnonzero(shared == 0)  # of another first character: there parts may be cut
    parts = begins[np.searchsorted(begins, ranks)]
    histograms = crew.run(lambda a, b: score_histogram(*given, a, b), parts)
    at_least = np.cumsum(np.sum(histograms, axis=0)[::-1])[::-1]  # substrings by their least score
    enough = np.flatnonzero(at_least[1:] >= seed_size)
    min_score = int(enough[-1]) + 1 if len(enough) else 1
    room = int(max(histogram[min_score:].sum() for histogram in histograms)) + len(begins)
    found = crew.run(lambda a, b: substrings(*given, a, b, min_score, room), parts)
    return _seed_pieces(suffixes, np.concatenate(found), seed_size)


def _seed_pieces(suffixes: Suffixes, found: NDArray[np.int64], seed_size: int) -> Pieces:
    """Return the best substrings and every character, scored by count times length."""
    found = found[np.lexsort((found[:, 1], found[:, 0]))]  # as their bytes sort
    found = found[_are_best(found[:, 2], seed_size)]
    starts, lengths, weights = suffixes.order[found[:, 0]].astype(np.int64), *found.T[1:]
    is_char = weights == 0
    weights[is_char] = [
        suffixes.char_counts[ord(suffixes.text[start : start + length].tobytes().decode())]
        for start, length in zip(starts[is_char], lengths[is_char], strict=True)
    ]
    return Pieces(
        text=suffixes.text,
        starts=starts,
        lengths=lengths,
        is_char=is_char,
        scores=np.log(weights / weights.sum()),
        byte_score=_FIRST_BYTE_SCORE,
    )


def _are_best(scores: NDArray[np.int64], num_best: int) -> NDArray[np.bool_]:
    """Choose the highest scores, of equals the first ones, and all that are 0 (characters)."""
    if np.count_nonzero(scores) <= num_best:
        return np.ones(len(scores), np.bool_)
    least = np.partition(scores, -num_best)[-num_best]
    room = num_best - np.count_nonzero(scores > least)
    is_least = scores == least
    return (scores > least) | (is_least & (np.cumsum(is_least) <= room)) | (scores == 0)


def _even_bounds(total: int, num_parts: int) -> NDArray[np.int64]:
    return np.linspace(0, total, num_parts + 1).astype(np.int64)
