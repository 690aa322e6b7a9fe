"""Checks an answer against its sources: which sentence is supported, by which words, where.

A marker `[n]` counts only if source n exists and holds the claim; a claim without a good marker is
attributed to the source sentence that supports it best, if any does. Every quote is a span of the
document, so a citation cannot be invented. Support is evidence, not proof: it compares words and
embeddings, and knows no negation. Not here: prompts, retrieval.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmlab.rag.answer import Citation
from llmlab.rag.documents import Hit
from llmlab.rag.sentences import sentence_spans
from llmlab.rag.words import content_stems, numbers

MIN_SUPPORT = 0.6
"""Word support from which a sentence counts as a quote for a claim."""

MIN_COSINE = 0.7
"""Cosine from which it does where the words differ."""

_MARKERS = re.compile(r"\[\s*\d+(?:\s*[,;]\s*\d+)*\s*\]")
_QUOTED = re.compile(r"[\"“]([^\"“”]{12,})[\"”]")
_HEADING = re.compile(r"#{1,6} [^\n]*")
_MIN_NEW_WORDS = 0.5


@dataclass(frozen=True, slots=True)
class _Claim:
    """A sentence of the answer."""

    text: str
    markers: tuple[int, ...]
    stems: frozenset[str]
    new: frozenset[str]
    """Stems that the question does not hold: what the answer adds."""
    numbers: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A sentence of a source."""

    marker: int
    start: int
    end: int
    text: str
    stems: frozenset[str]


def cite(
    answer: str,
    question: str,
    hits: Sequence[Hit],
    encode: Callable[[Sequence[str]], np.ndarray],
) -> tuple[tuple[Citation, ...], tuple[str, ...]]:
    """Find the places that support an answer.

    Args:
        answer: the model's text.
        question: what was asked; its words prove nothing.
        hits: the sources in marker order.
        encode: texts to `(n, dim)` float32 of norm 1; called only where words do not decide.

    Returns:
        The citations in the answer's order, and the sentences without any.
    """
    citations: list[Citation] = []
    unsupported: list[str] = []
    candidates = [c for n, hit in enumerate(hits, 1) for c in _candidates(n, hit)]
    for claim in _claims(answer, question):
        found = _cite_claim(claim, question, hits, candidates, encode)
        citations += found
        unsupported += [] if found else [claim.text]
    return tuple(citations), tuple(unsupported)


def _cite_claim(
    claim: _Claim,
    question: str,
    hits: Sequence[Hit],
    candidates: Sequence[_Candidate],
    encode: Callable[[Sequence[str]], np.ndarray],
) -> list[Citation]:
    allowed = {n for n, hit in enumerate(hits, 1) if _may_support(hit, claim, question)}
    found = []
    for marker in claim.markers:
        if marker in allowed:
            mine = [c for c in candidates if c.marker == marker]
            best = _verbatim(claim, mine, hits) or _best(claim, mine, encode)
            found += [_citation(claim, *best, "model", hits)] if best else []
    if not found:
        rest = [c for c in candidates if c.marker in allowed]
        best = _verbatim(claim, rest, hits) or _best(claim, rest, encode)
        found += [_citation(claim, *best, "attributed", hits)] if best else []
    return found


def _claims(answer: str, question: str) -> Iterator[_Claim]:
    """Yield the sentences of an answer; markers after a full stop belong to what they follow."""
    text = re.sub(rf"([.!?]+)\s*((?:{_MARKERS.pattern}\s*)+)", r" \2\1 ", answer)
    asked = content_stems(question)
    for start, end in sentence_spans(text):
        sentence = text[start:end]
        found = [int(n) for m in _MARKERS.findall(sentence) for n in re.findall(r"\d+", m)]
        bare = re.sub(r"\s+([.!?,;:])", r"\1", _MARKERS.sub(" ", sentence))
        bare = " ".join(bare.split())
        stems = content_stems(bare)
        if stems:
            markers = tuple(dict.fromkeys(found))
            yield _Claim(bare, markers, stems, stems - asked, numbers(bare))


def _candidates(marker: int, hit: Hit) -> Iterator[_Candidate]:
    has_headings = Path(hit.doc).suffix in (".md", ".markdown")
    for start, end in sentence_spans(hit.text):
        text = hit.text[start:end]
        stems = content_stems(text)
        is_heading = has_headings and _HEADING.fullmatch(text)  # names a thing, states nothing
        if stems and not is_heading:
            yield _Candidate(marker, hit.start + start, hit.start + end, text, stems)


def _may_support(hit: Hit, claim: _Claim, question: str) -> bool:
    """Rule out a source that lacks a number, or most of what the claim adds to the question."""
    if not claim.numbers <= numbers(hit.text) | numbers(question):
        return False
    return not claim.new or _held(claim.new, content_stems(hit.text)) >= _MIN_NEW_WORDS


def _held(part: frozenset[str], whole: frozenset[str]) -> float:
    return len(part & whole) / len(part)


def _verbatim(
    claim: _Claim, candidates: Sequence[_Candidate], hits: Sequence[Hit]
) -> tuple[_Candidate, float] | None:
    """Find words that the claim quotes, blanks and case aside."""
    for quoted in _QUOTED.findall(claim.text):
        pattern = r"\s+".join(map(re.escape, quoted.strip(" .,;").split()))
        for marker in dict.fromkeys(c.marker for c in candidates):
            hit = hits[marker - 1]
            found = re.search(pattern, hit.text, re.IGNORECASE) if pattern else None
            if found:
                start, end = hit.start + found.start(), hit.start + found.end()
                return _Candidate(marker, start, end, found[0], frozenset()), 1.0
    return None


def _best(
    claim: _Claim,
    candidates: Sequence[_Candidate],
    encode: Callable[[Sequence[str]], np.ndarray],
) -> tuple[_Candidate, float] | None:
    """Return the sentence that supports a claim best, by words, else by meaning."""
    if not candidates:
        return None
    scores = [_support(claim, candidate) for candidate in candidates]
    at = int(np.argmax(scores))
    if scores[at] >= MIN_SUPPORT:
        return candidates[at], scores[at]
    vectors = encode([claim.text, *(candidate.text for candidate in candidates)])  # (1 + n, dim)
    cosines = vectors[1:] @ vectors[0]  # (n,)
    at = int(np.argmax(cosines))
    return (candidates[at], float(cosines[at])) if cosines[at] >= MIN_COSINE else None


def _support(claim: _Claim, candidate: _Candidate) -> float:
    """Return the share of the claim's words in a sentence.

    Where the claim adds words to the question, it is the harmonic mean of the shares of all its
    words and of those: neither repeating the question nor one lucky word is enough.
    """
    whole = _held(claim.stems, candidate.stems)
    new = _held(claim.new, candidate.stems) if claim.new else whole
    return 2 * whole * new / (whole + new) if whole + new else 0.0


def _citation(
    claim: _Claim, candidate: _Candidate, support: float, origin: str, hits: Sequence[Hit]
) -> Citation:
    hit = hits[candidate.marker - 1]
    return Citation(
        marker=candidate.marker,
        doc=hit.doc,
        start=candidate.start,
        end=candidate.end,
        quote=hit.text[candidate.start - hit.start : candidate.end - hit.start],
        claim=claim.text,
        origin="model" if origin == "model" else "attributed",
        support=round(support, 3),
        page=hit.page,
    )
