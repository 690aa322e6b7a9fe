"""SentencePiece's BPE: characters joined into pieces, the piece with the best score first.

There is no list of merges: two neighbours join when what they spell is a piece, so a piece may
come about in several ways, unlike in bpe.py. Character models are the same without longer pieces.
Not here: writing a space as U+2581 (normalizers), reading the file (files/sentencepiece_model.py).

Source: Sennrich et al., arXiv:1508.07909; Kudo and Richardson, arXiv:1808.06226.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from heapq import heapify, heappop, heappush
from itertools import accumulate, pairwise
from math import inf
from typing import Any, NamedTuple

import regex

from llmlab.tokenizers.models.unknown import NO_PIECE, UnknownCharacters

Span = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class SentencePieceBPE:
    """The pieces of a BPE model and what each is for."""

    pieces: tuple[tuple[str, float], ...]
    """Piece and score, by id; pairs that make the piece of the highest score join first."""

    unk_id: int | None
    """What a character without a piece becomes; a run of them becomes one."""

    byte_fallback: bool = False
    """Whether a character without a piece becomes its bytes, the pieces `<0x00>` to `<0xFF>`."""

    user_defined: frozenset[int] = frozenset()
    """Ids found in the text before anything joins, the longest first; they never join."""

    unused: frozenset[int] = frozenset()
    """Ids that help to build others and are taken apart again where they remain."""

    unmatched: frozenset[int] = frozenset()
    """Ids that no text becomes: control pieces, bytes, the unknown piece."""

    @property
    def component(self) -> dict[str, Any]:
        """`model` of tokenizer.json, with the scores under a key that `tokenizers` passes over."""
        names = ("user_defined", "unused", "unmatched")
        types = {name: sorted(getattr(self, name)) for name in names}
        return {
            "type": "BPE",
            "dropout": None,
            "unk_token": None if self.unk_id is None else self.pieces[self.unk_id][0],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": self.byte_fallback,
            "ignore_merges": False,
            "vocab": self.vocab,
            "merges": [list(pair) for pair in self._merges()],
            "sentencepiece": {"scores": [score for _, score in self.pieces], **types},
        }

    def _merges(self) -> list[tuple[str, str]]:
        """Return every way to make a piece of two others, the best piece first."""
        vocab = self.vocab
        usable = {piece for piece, token in vocab.items() if token not in self.unmatched}
        return [
            (piece[:at], piece[at:])
            for piece, _ in sorted(self.pieces, key=lambda entry: -entry[1])
            if piece in usable
            for at in range(1, len(piece))
            if piece[:at] in usable and piece[at:] in usable
        ]

    @property
    def vocab(self) -> dict[str, int]:
        """Piece to id."""
        return {piece: token for token, (piece, _) in enumerate(self.pieces)}


_SHORT_LEN = 32
"""Characters up to which looking at every pair takes no longer than the queue."""


class SentencePieceBPEEncoder:
    """Cuts text as a model says. It never changes; threads may share it.

    Args:
        model: the pieces.

    Raises:
        TokenizerError: byte fallback is asked for and a byte has no piece.
    """

    def __init__(self, model: SentencePieceBPE) -> None:
        vocab = model.vocab
        self._found = {
            piece: _Found(token, model.pieces[token][1], token in model.unused)
            for piece, token in vocab.items()
            if token not in model.unmatched
        }
        self._unknown = UnknownCharacters(
            vocab, unk_id=model.unk_id, byte_fallback=model.byte_fallback
        )
        self._symbols = _symbol_pattern([model.pieces[i][0] for i in model.user_defined])
        self._is_plain = not model.user_defined and not model.unused

    def encode(self, piece: str) -> list[int]:
        """Return the ids of one pre-token."""
        return [token for token, _, _ in self.spans(piece)]

    def spans(self, piece: str) -> Iterator[tuple[int, int, int]]:
        """Yield (id, start, end) in characters; the bytes of one character share its span.

        Raises:
            TokenizerError: a character has no piece, and the model nothing to write for it.
        """
        return self._unknown.filled(piece, self._path(piece))

    def _path(self, text: str) -> Iterator[tuple[int, int, int]]:
        """Yield (id or NO_PIECE, start, end) of what is left when nothing joins any more."""
        is_short = self._is_plain and len(text) <= _SHORT_LEN
        for start, end in self._joined(text) if is_short else _Merge(self, text).run():
            found = self.find(text[start:end])
            yield (found.token if found and not found.unused else NO_PIECE), start, end

    def _joined(self, text: str) -> Iterator[Span]:
        """Join by looking at every pair again; for short texts that takes no longer."""
        scores = self._scores
        symbols = list(text)
        pairs = [scores.get(left + right, -inf) for left, right in pairwise(symbols)]
        while pairs and (best := max(pairs)) > -inf:
            at = pairs.index(best)  # of equals the first one
            symbols[at] += symbols[at + 1]
            del symbols[at + 1], pairs[at]
            if at > 0:
                pairs[at - 1] = scores.get(symbols[at - 1] + symbols[at], -inf)
            if at < len(pairs):
                pairs[at] = scores.get(symbols[at] + symbols[at + 1], -inf)
        ends = [0, *accumulate(map(len, symbols))]
        return pairwise(ends)

    @cached_property
    def _scores(self) -> dict[str, float]:
        return {piece: found.score for piece, found in self._found.items()}

    def find(self, spelled: str) -> "_Found | None":
        """Return the piece of this spelling, if it is one that may join."""
        return self._found.get(spelled)

    def symbols(self, piece: str) -> Iterator[tuple[int, int, bool]]:
        """Yield (start, end, whether it is user-defined) of what is there before joining."""
        for found in self._symbols.finditer(piece):
            yield found.start(), found.end(), found.lastindex == 1


class _Found(NamedTuple):
    token: int
    score: float
    unused: bool


class _Merge:
    """One text while its symbols join: a linked list and a queue of candidates."""

    def __init__(self, encoder: SentencePieceBPEEncoder, piece: str) -> None:
        self._find = encoder.find
        self._piece = piece
        symbols = list(encoder.symbols(piece))
        self._starts = [start for start, _, _ in symbols] + [len(piece)]
        self._frozen = [frozen for _, _, frozen in symbols]
        self._after = list(range(1, len(symbols) + 1))
        self._before = list(range(-1, len(symbols)))
        self._queue: list[tuple[float, int, int, int]] = []
        self._made_of: dict[str, int] = {}  # unused piece to the length of its left part

    def run(self) -> Iterator[Span]:
        """Join until nothing joins and yield what is left."""
        end = len(self._frozen)
        queue = self._queue
        for left in range(end - 1):
            self._consider(left)
        heapify(queue)
        while queue:
            _, left, right, stop = heappop(queue)
            if self._after[left] != right or self._after[right] != stop:
                continue  # one of the two was joined to something else meanwhile
            self._after[left], self._before[stop] = stop, left
            self._after[right] = -1
            if (before := self._before[left]) >= 0:
                self._push(before)
            if stop < end:
                self._push(left)
        at = 0
        while at < end:
            yield from self._used_parts(self._starts[at], self._starts[self._after[at]])
            at = self._after[at]

    def _push(self, left: int) -> None:
        size = len(self._queue)
        self._consider(left)
        if len(self._queue) > size:
            heappush(self._queue, self._queue.pop())

    def _consider(self, left: int) -> None:
        """Append the pair that starts here to the queue when it spells a piece."""
        right = self._after[left]
        if self._frozen[left] or self._frozen[right]:
            return
        stop = self._after[right]
        start, end = self._starts[left], self._starts[stop]
        spelled = self._piece[start:end]
        if (found := self._find(spelled)) is not None:
            self._queue.append((-found.score, left, right, stop))
            if found.unused:
                self._made_of[spelled] = self._starts[right] - start

    def _used_parts(self, start: int, end: int) -> Iterator[Span]:
        """Yield a part as it is, or what an unused piece was last made of."""
        parts = [(start, end)]
        while parts:
            start, end = parts.pop()
            spelled = self._piece[start:end]
            found = self._find(spelled)
            if found and found.unused and (cut := self._made_of.get(spelled)):
                parts += [(start + cut, end), (start, start + cut)]
            else:
                yield start, end


def _symbol_pattern(user_defined: list[str]) -> regex.Pattern[str]:
    """Return what finds user-defined pieces (group 1), longest first, else one character."""
    if not user_defined:
        return regex.compile(r"(?s).")
    named = "|".join(regex.escape(piece) for piece in sorted(user_defined, key=len)[::-1])
    return regex.compile(f"(?s)({named})|.")
