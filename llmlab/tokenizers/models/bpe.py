"""Byte-pair encoding of one pre-token, and the cache in front of it.

The lowest-ranked merge is applied first, the leftmost of equals, one at a time, until none
applies. Words are short, so that looking at every candidate finds it soonest; a longer pre-token
has a queue of candidates over a linked list, and n bytes take O(n log n), not O(n^2). Words
repeat (Zipf), so nearly every pre-token of a text comes from the cache. Not here: cutting text into
pre-tokens (splits.py), learning merges (trainers/bpe.py), the compiled twin (compiled/merging.py).

Source: Sennrich et al., arXiv:1508.07909.
"""

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heapify, heappop, heappush
from itertools import accumulate, pairwise
from random import Random
from typing import Any

from llmlab.errors import ConfigError, TokenizerError
from llmlab.tokenizers.alphabet import CHARS, spell, unspell, utf8

_MAX_CACHED = 2**17
"""Pre-tokens held; at most about 40 MB with the next bound."""

_MAX_CACHED_CHARS = 64
"""A longer pre-token is no word and will hardly come again."""

_SHORT_LEN = 32
"""Ids up to which looking at every candidate takes no longer than the queue (measured)."""

_NO_MERGE = 2**62


@dataclass(frozen=True, kw_only=True)
class ByteLevelBPE:
    """A vocabulary of bytes and merges."""

    vocab: dict[str, int]
    """Token, spelled in the byte alphabet, to id."""

    merges: tuple[tuple[str, str], ...]
    """Pairs of tokens, the first one applied first."""

    ignore_merges: bool = False
    """Whether a pre-token that is a token becomes it at once, whatever the merges say."""

    unknown_token: str | None = None
    """What a byte without a token becomes; None drops it."""

    @property
    def component(self) -> dict[str, Any]:
        """`model` of tokenizer.json."""
        return {
            "type": "BPE",
            "dropout": None,
            "unk_token": self.unknown_token,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": self.ignore_merges,
            "vocab": dict(sorted(self.vocab.items(), key=lambda item: item[1])),
            "merges": [list(pair) for pair in self.merges],
        }


class BPE:
    """Merges over a vocabulary.

    Args:
        vocab: token, spelled in the byte alphabet, to id.
        merges: pairs of tokens, the first one ranked lowest.
        whole_words: tokens that a pre-token equal to them becomes at once, merges or not
            (`ignore_merges` in tokenizer.json; Llama 3 has it).
        unknown_id: what a byte without a token becomes; None drops it, as `tokenizers` does.

    Raises:
        TokenizerError: a merge names or makes a token that is not in the vocabulary.
    """

    def __init__(
        self,
        vocab: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        *,
        whole_words: Mapping[str, int],
        unknown_id: int | None = None,
    ) -> None:
        self.byte_ids = [vocab.get(char, unknown_id) for char in CHARS]
        """The id of each byte; None for one that is dropped."""
        self.whole_words = whole_words
        """Pre-tokens, spelled in the byte alphabet, that become one id at once."""
        self._vocab = vocab
        self._unknown_id = unknown_id
        self._ranks: dict[tuple[int, int], int] = {}
        self._made: list[int] = []
        for rank, (left, right) in enumerate(merges):
            try:
                pair, made = (vocab[left], vocab[right]), vocab[left + right]
            except KeyError as error:
                raise TokenizerError(
                    f"merge {rank} ({left!r}, {right!r}) needs the token {error.args[0]!r}, "
                    "which is not in the vocabulary; the file is damaged or cut short"
                ) from error
            self._ranks[pair] = rank
            self._made.append(made)

    @property
    def merges(self) -> list[tuple[int, int, int]]:
        """(left, right, made) ids of every merge, best first."""
        ranked = sorted(self._ranks.items(), key=lambda item: item[1])
        return [(left, right, self._made[rank]) for (left, right), rank in ranked]

    def encode(self, piece: str) -> list[int]:
        """Return the ids of one pre-token."""
        data = utf8(piece)
        if self.whole_words and (whole := self.whole_words.get(spell(data))) is not None:
            return [whole]
        ids = self._ids_of_bytes(data)
        return self._merge_short(ids) if len(ids) <= _SHORT_LEN else self._merge(ids)

    def spans(self, piece: str) -> Iterator[tuple[int, int, int]]:
        """Yield (id, start, end) in characters; part of a character covers the whole of it."""
        data = utf8(piece)
        char_of = [at for at, char in enumerate(piece) for _ in utf8(char)]
        places = [at for at, byte in enumerate(data) if self.byte_ids[byte] is not None]
        ids = self.encode(piece)
        ends = accumulate(self._num_bytes.get(token, 1) for token in ids)
        first = 0
        for token, end in zip(ids, ends, strict=True):
            yield token, char_of[places[first]], char_of[places[end - 1]] + 1
            first = end

    @cached_property
    def _num_bytes(self) -> dict[int, int]:
        """Bytes of each token; an unknown one stands for a single byte."""
        lengths = {token_id: len(unspell(token)) for token, token_id in self._vocab.items()}
        return lengths | ({} if self._unknown_id is None else {self._unknown_id: 1})

    def encode_with_dropout(self, piece: str, dropout: float, rng: Random) -> list[int]:
        """Return the ids of one pre-token as BPE-dropout cuts it, for training.

        Every candidate taken off the queue is passed over with probability `dropout`, and comes
        back after the next one that is not. At 0 this is `encode`; at 1 no merge happens. Between
        them a pre-token that is a token is not taken whole. `tokenizers` does the same.

        Args:
            piece: the pre-token.
            dropout: the probability, 0 to 1; the paper takes 0.1.
            rng: where chance comes from.

        Raises:
            ConfigError: `dropout` is no probability.

        Source: Provilkov et al., arXiv:1910.13267.
        """
        if not 0 <= dropout <= 1:
            raise ConfigError(f"dropout={dropout} is not a probability; take 0 to 1, say 0.1")
        if dropout == 0:
            return self.encode(piece)
        return self._merge(self._ids_of_bytes(utf8(piece)), lambda: rng.random() < dropout)

    def _ids_of_bytes(self, data: bytes) -> list[int]:
        return [token for token in map(self.byte_ids.__getitem__, data) if token is not None]

    def _merge_short(self, ids: list[int]) -> list[int]:
        ranks = self._ranks
        found = [ranks.get(pair, _NO_MERGE) for pair in pairwise(ids)]
        while found and (rank := min(found)) < _NO_MERGE:
            at = found.index(rank)
            ids[at] = self._made[rank]
            del ids[at + 1], found[at]
            if at > 0:
                found[at - 1] = ranks.get((ids[at - 1], ids[at]), _NO_MERGE)
            if at < len(found):
                found[at] = ranks.get((ids[at], ids[at + 1]), _NO_MERGE)
        return ids

    def _merge(self, ids: list[int], is_dropped: Callable[[], bool] | None = None) -> list[int]:
        ranks, end = self._ranks, len(ids)
        after = list(range(1, end + 1))
        before = list(range(-1, end - 1))
        queue = [(ranks[pair], at) for at, pair in enumerate(pairwise(ids)) if pair in ranks]
        heapify(queue)
        dropped = []
        while queue:
            rank, at = heappop(queue)
            if is_dropped:
                if is_dropped():
                    dropped.append((rank, at))
                    continue
                while dropped:
                    heappush(queue, dropped.pop())
            right = after[at]
            if right == end or ranks.get((ids[at], ids[right])) != rank:
                continue  # one of the two was merged away meanwhile
            ids[at], ids[right] = self._made[rank], -1
            right = after[at] = after[right]
            if right < end:
                before[right] = at
                if (found := ranks.get((ids[at], ids[right]))) is not None:
                    heappush(queue, (found, at))
            left = before[at]
            if left >= 0 and (found := ranks.get((ids[left], ids[at]))) is not None:
                heappush(queue, (found, left))
        return [token for token in ids if token >= 0]


class PieceCache(dict[str, bytes]):
    """Pre-token to its ids as uint32 bytes; a missing one is encoded and kept.

    It is emptied when full, so memory is bounded and the words of the moment come back at once.

    Args:
        encode: pre-token to ids.
        max_pieces: pre-tokens held.
    """

    def __init__(
        self, encode: Callable[[str], list[int]], *, max_pieces: int = _MAX_CACHED
    ) -> None:
        super().__init__()
        self._encode = encode
        self._max_pieces = max_pieces

    def __missing__(self, piece: str) -> bytes:
        ids = array("I", self._encode(piece)).tobytes()
        if len(piece) <= _MAX_CACHED_CHARS:
            if len(self) >= self._max_pieces:
                self.clear()
            self[piece] = ids
        return ids
