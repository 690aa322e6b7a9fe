"""Cuts a document into chunks with exact offsets: `document.text[start:end] == chunk.text`.

Sentences (lines in code) are packed until a chunk is full; the cut goes to the strongest boundary
in the chunk's second half: a section, else a paragraph, else a sentence, and among equals to the
one that leaves even shares, since a short rest at the end of a section is a poor passage. A
sentence too long for one chunk is cut between words. Sizes are counted in whatever `token_starts`
says is a token; use `character_starts` to count characters. Not here: tokenizers, headings
(structure.py).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from llmlab.errors import ConfigError
from llmlab.rag.documents import Chunk, Document
from llmlab.rag.sentences import Span, line_spans, sentence_spans, trim
from llmlab.rag.structure import is_code, section_starts

_SENTENCE, _PARAGRAPH, _SECTION = 1, 2, 3
_SECTION_FILL = 0.25
"""A section opens a new chunk when the one before it is at least this full."""


@dataclass(frozen=True, slots=True)
class _Atom:
    """A span that is not cut further."""

    start: int
    end: int
    boundary: int
    """Strength of the boundary before it; 0 inside a sentence."""


def chunk_document(
    document: Document,
    *,
    size: int,
    overlap: int,
    token_starts: Callable[[str], np.ndarray],
) -> list[Chunk]:
    """Cut a document into chunks, in order.

    Every character that is not white space is in a chunk. No chunk starts a section in its middle
    unless the part before it is small.

    Args:
        document: what to cut.
        size: longest chunk, in tokens. One character that is several tokens may exceed it.
        overlap: tokens a chunk repeats, at most, from the one before it in the same section.
        token_starts: text to the offset of each of its tokens, not decreasing.

    Raises:
        ConfigError: `overlap` is negative or not below half of `size`.
    """
    check_sizes(size, overlap)
    ruler = _Ruler(document.text, token_starts, size)
    atoms = _atoms(document, ruler)
    return [
        Chunk(document.source, start, end, document.text[start:end])
        for start, end in _pack(atoms, ruler, overlap)
    ]


def check_sizes(size: int, overlap: int) -> None:
    """Raise ConfigError unless `0 <= overlap < size / 2`."""
    if size < 1 or not 0 <= 2 * overlap < size:
        raise ConfigError(
            f"chunk_tokens={size} with overlap_tokens={overlap}: the overlap must be at least 0 "
            f"and less than half of the chunk; try overlap_tokens={max(0, size // 8)}"
        )


def character_starts(text: str) -> np.ndarray:
    """Count every character as a token."""
    return np.arange(len(text), dtype=np.int64)


class _Ruler:
    """Counts the tokens of any span of one text in O(log n)."""

    def __init__(self, text: str, token_starts: Callable[[str], np.ndarray], size: int) -> None:
        self.text = text
        self.size = size
        self._starts = np.asarray(token_starts(text), dtype=np.int64)

    def tokens(self, start: int, end: int) -> int:
        low, high = np.searchsorted(self._starts, (start, end))
        return int(high - low)

    def limit(self, start: int) -> int:
        """Return the offset at which a piece that begins at `start` must end, past `start`."""
        at = int(np.searchsorted(self._starts, start)) + self.size
        return max(start + 1, int(self._starts[at])) if at < len(self._starts) else len(self.text)


def _atoms(document: Document, ruler: _Ruler) -> list[_Atom]:
    text = document.text
    sections = section_starts(document)
    spans = line_spans(text) if is_code(document) else sentence_spans(text)
    atoms: list[_Atom] = []
    previous = 0
    for start, end in _cut_at(spans, sections, text):
        low, high = np.searchsorted(sections, (previous, start + 1))
        if high > low:
            boundary = _SECTION
        else:
            boundary = _PARAGRAPH if text.count("\n", previous, start) > 1 else _SENTENCE
        atoms += _split_long(start, end, boundary, ruler)
        previous = end
    return atoms


def _cut_at(spans: list[Span], offsets: list[int], text: str) -> list[Span]:
    """Cut the spans that run across one of the offsets."""
    pieces: list[Span] = []
    for start, end in spans:
        low, high = np.searchsorted(offsets, (start + 1, end))
        edges = [start, *offsets[low:high], end]
        pieces += [trim(text, *edge) for edge in pairwise(edges)]
    return [(start, end) for start, end in pieces if start < end]


def _split_long(start: int, end: int, boundary: int, ruler: _Ruler) -> list[_Atom]:
    """Cut one sentence into atoms of at most `size` tokens, between words where there are any."""
    atoms: list[_Atom] = []
    while ruler.tokens(start, end) > ruler.size and end - start > 1:
        cut = min(ruler.limit(start), end)
        words = ruler.text[start:cut]
        blank = max(words.rfind(" "), words.rfind("\n"), words.rfind("\t"))
        if cut < end and blank > len(words) // 2:
            cut = start + blank + 1
        piece = trim(ruler.text, start, cut)
        atoms += [_Atom(*piece, boundary)] if piece[0] < piece[1] else []
        boundary = 0
        start, end = trim(ruler.text, cut, end)
    return [*atoms, _Atom(start, end, boundary)] if start < end else atoms


def _pack(atoms: list[_Atom], ruler: _Ruler, overlap: int) -> list[Span]:
    spans: list[Span] = []
    section_ends = _section_ends(atoms)
    first = 0
    covered = 0  # atoms before this one are in a chunk already
    while covered < len(atoms):
        stop = _fill(atoms, first, covered, section_ends[covered], ruler)
        spans.append((atoms[first].start, atoms[stop - 1].end))
        covered = stop
        first = _step_back(atoms, first, stop, ruler, overlap)
    return spans


def _section_ends(atoms: list[_Atom]) -> list[int]:
    """Return for each atom the offset at which its section ends."""
    ends = [atom.end for atom in atoms]
    for at in range(len(atoms) - 2, -1, -1):
        if atoms[at + 1].boundary != _SECTION:
            ends[at] = ends[at + 1]
    return ends


def _fill(atoms: list[_Atom], first: int, covered: int, section_end: int, ruler: _Ruler) -> int:
    """Return the index after the last atom of the chunk that begins at `first`."""
    start = atoms[first].start
    rest = ruler.tokens(start, section_end)
    even = rest / max(1, math.ceil(rest / ruler.size))
    best = (0, 0.0, 0)  # boundary, minus the distance from an even share, where
    for stop in range(covered + 1, len(atoms)):
        held = ruler.tokens(start, atoms[stop - 1].end)
        boundary = atoms[stop].boundary
        if boundary == _SECTION and held >= _SECTION_FILL * ruler.size:
            return stop
        if held >= ruler.size / 2:
            best = max(best, (boundary, -abs(held - even), stop))
        if ruler.tokens(start, atoms[stop].end) > ruler.size:
            return best[2] or stop
    return len(atoms)


def _step_back(atoms: list[_Atom], first: int, stop: int, ruler: _Ruler, overlap: int) -> int:
    """Return the atom with which the next chunk begins: `stop`, or some before it to overlap."""
    if stop == len(atoms) or atoms[stop].boundary == _SECTION:
        return stop
    begin = stop
    while (
        begin - 1 > first
        and ruler.tokens(atoms[begin - 1].start, atoms[stop - 1].end) <= overlap
        and ruler.tokens(atoms[begin - 1].start, atoms[stop].end) <= ruler.size
    ):
        begin -= 1
    return begin
