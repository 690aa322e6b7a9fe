"""Reciprocal-rank fusion (Cormack, Clarke, Büttcher 2009, SIGIR): one ranking out of several.

Ranks, not scores, are added up, since BM25 and cosine have no common scale; each leg's own score
is kept beside the sum. Not here: the legs (store.py, vectors.py).
"""

from collections.abc import Mapping, Sequence

RRF_K = 60
"""Rank constant: a hit at rank r (from 1) adds 1 / (60 + r)."""


def fuse(legs: Mapping[str, Sequence[tuple[int, float]]]) -> dict[int, dict[str, float]]:
    """Fuse rankings.

    Args:
        legs: by name, ids with their scores, best first.

    Returns:
        By id, the fused score as `rrf` and the score of each leg that found the id.
    """
    scores: dict[int, dict[str, float]] = {}
    for leg, found in legs.items():
        for rank, (key, score) in enumerate(found, start=1):
            entry = scores.setdefault(key, {"rrf": 0.0})
            entry["rrf"] += 1 / (RRF_K + rank)
            entry[leg] = score
    return scores
