"""The windows of one split: which tokens each holds, and the shuffled order they come in.

A window is a list of pieces (first token, number of tokens). Every token of a piece is scored, and
predicted from the token before it: eos, where a document begins. The order is a pure function of
(seed, position), so that any place in it is reached at once.

Not here: turns of several splits, batches (batches.py).
"""

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from llmlab.data.batch import IGNORED
from llmlab.data.best_fit import plan_best_fit
from llmlab.data.config import Packing
from llmlab.data.permutation import Permutation
from llmlab.data.shards import Shards, Split
from llmlab.errors import ConfigError

Pieces = list[tuple[int, int]]

_PHASE, _ORDER = 0, 1
"""What a number is drawn for: part of its seed."""


class StreamLayout:
    """Windows cut from the split end to end, across documents; all tokens but a few are scored.

    Each epoch draws another phase, so that windows start at other tokens.

    Args:
        num_tokens: of the split; more than `context_len`.
        context_len: tokens a window, T.
        seed: of the phases.
    """

    def __init__(self, num_tokens: int, context_len: int, seed: int) -> None:
        self._context_len, self._seed = context_len, seed
        self.num_windows = max(1, (num_tokens - context_len) // context_len)
        self._num_phases = min(context_len, num_tokens - self.num_windows * context_len)
        self._phase = lru_cache(maxsize=4)(self._draw_phase)

    def pieces(self, epoch: int, window: int) -> Pieces:
        """Return the one piece of a window."""
        return [(1 + self._phase(epoch) + window * self._context_len, self._context_len)]

    def _draw_phase(self, epoch: int) -> int:
        drawn = np.random.SeedSequence((self._seed, epoch, _PHASE)).generate_state(1, np.uint64)
        return int(drawn[0]) % self._num_phases


class BestFitLayout:
    """Windows into which documents are placed whole; see best_fit.py.

    Args:
        shards: the folder.
        split: `train` or `val`.
        context_len: positions in a window, T.
    """

    def __init__(self, shards: Shards, split: Split, context_len: int) -> None:
        self.plan = plan_best_fit(shards.doc_starts(split), len(shards.split(split)), context_len)
        self.num_windows = self.plan.num_windows

    def pieces(self, epoch: int, window: int) -> Pieces:
        """Return the pieces of a window, the same in every epoch."""
        return self.plan.pieces(window)


class Windows:
    """The windows of a split in shuffled order, each once an epoch.

    Args:
        shards: the folder.
        split: `train` or `val`.
        context_len: positions in a window, T.
        seed: of the order.
        packing: how documents are laid into windows.

    Raises:
        ConfigError: the split has too few tokens for one window.
    """

    def __init__(
        self, shards: Shards, split: Split, *, context_len: int, seed: int, packing: Packing
    ) -> None:
        self._tokens = shards.split(split)
        if len(self._tokens) <= context_len:
            raise ConfigError(
                f"context_len={context_len} needs {context_len + 1} tokens, but the {split} split "
                f"of {shards.folder} has {len(self._tokens)}; use a smaller context or more data"
            )
        self._eos, self._seed = shards.eos_token_id, seed
        if packing == "stream":
            self.layout = StreamLayout(len(self._tokens), context_len, seed)
        else:
            self.layout = BestFitLayout(shards, split, context_len)
        self._permutation = lru_cache(maxsize=4)(self._draw_permutation)

    @property
    def num_windows(self) -> int:
        """Windows an epoch."""
        return self.layout.num_windows

    def pieces(self, positions: Iterable[int]) -> list[Pieces]:
        """Return the pieces of the windows at some positions of the endless order."""
        places = [divmod(position, self.num_windows) for position in positions]
        found: dict[tuple[int, int], int] = {}
        for epoch in {epoch for epoch, _ in places}:
            indices = [index for other, index in places if other == epoch]
            shuffled = self._permutation(epoch)(np.array(indices))
            found.update(zip(((epoch, i) for i in indices), shuffled.tolist(), strict=True))
        return [self.layout.pieces(epoch, found[epoch, index]) for epoch, index in places]

    def write(
        self,
        pieces: Pieces,
        input_ids: NDArray[np.int64],
        labels: NDArray[np.int64],
        document_ids: NDArray[np.int32] | None,
    ) -> None:
        """Write one window into one row of a batch, each (T,).

        `document_ids` counts up from one document, or piece of one, to the next, and once more
        for the padding.
        """
        at = 0
        for number, (start, length) in enumerate(pieces):
            end = at + length
            tokens = self._tokens[max(start - 1, 0) : start + length]
            labels[at:end] = tokens[-length:]
            input_ids[at] = tokens[0] if start else self._eos
            input_ids[at + 1 : end] = labels[at : end - 1]
            if document_ids is not None:
                document_ids[at:end] = number
            at = end
        if document_ids is not None:  # inside a piece, eos begins the next document
            document_ids[at:] = len(pieces)
            document_ids[:at] += np.cumsum(input_ids[:at] == self._eos, dtype=np.int32)
            document_ids[at:] += document_ids[at - 1]
        input_ids[at:] = self._eos
        labels[at:] = IGNORED

    def _draw_permutation(self, epoch: int) -> Permutation:
        return Permutation(self.num_windows, self._seed, epoch, _ORDER)
