"""The windows of one split: which tokens each holds.

A window is a list of pieces (first token, number of tokens). Every token of a piece is scored, and
predicted from the token before it: eos, where a document begins.

Not here: their order (order.py), turns of several splits, batches (batches.py).
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from llmlab.data.batch import IGNORED
from llmlab.data.best_fit import plan_best_fit
from llmlab.data.config import Packing
from llmlab.data.growing import GrowingTokens
from llmlab.data.order import Order
from llmlab.data.shards import Shards, Split, Tokens
from llmlab.errors import ConfigError

Pieces = list[tuple[int, int]]

_PHASE = 0
"""Part of the seed: what the number is drawn for."""


class StreamLayout:
    """Windows cut from the split end to end, across documents; all tokens but a few are scored.

    Each epoch draws another phase, so that windows start at other tokens.

    Args:
        tokens: the split; more than `context_len`, or growing.
        context_len: tokens a window, T.
        seed: of the phases.
    """

    def __init__(self, tokens: Tokens, context_len: int, seed: int) -> None:
        self._tokens, self._context_len, self._seed = tokens, context_len, seed
        self._phase = lru_cache(maxsize=4)(self._draw_phase)

    @property
    def num_windows(self) -> int | None:
        """Windows an epoch; None while the split grows."""
        if isinstance(self._tokens, GrowingTokens) and not self._tokens.complete:
            return None
        return max(1, (len(self._tokens) - self._context_len) // self._context_len)

    def pieces(self, epoch: int, window: int) -> Pieces:
        """Return the one piece of a window."""
        return [(1 + self._phase(epoch) + window * self._context_len, self._context_len)]

    def _draw_phase(self, epoch: int) -> int:
        drawn = np.random.SeedSequence((self._seed, epoch, _PHASE)).generate_state(1, np.uint64)
        phases = self._context_len
        if self.num_windows:  # a split of less than two windows has fewer places to start at
            phases = min(phases, len(self._tokens) - self.num_windows * self._context_len)
        return int(drawn[0]) % phases


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
        self._eos = shards.eos_token_id
        self._growing = self._tokens if isinstance(self._tokens, GrowingTokens) else None
        if self._growing is None and len(self._tokens) <= context_len:
            raise ConfigError(
                f"context_len={context_len} needs {context_len + 1} tokens, but the {split} split "
                f"of {shards.folder} has {len(self._tokens)}; use a smaller context or more data"
            )
        if self._growing is not None and packing != "stream":
            raise ConfigError(
                f"packing={packing!r} needs all documents of {shards.folder}, which is tokenized "
                "while it is read; use --packing stream, or start anew with --no-tokenize-ahead"
            )
        if packing == "stream":
            self.layout = StreamLayout(self._tokens, context_len, seed)
        else:
            self.layout = BestFitLayout(shards, split, context_len)
        self._block = 0 if self._growing is None else _block_windows(self._growing, context_len)
        self._order = Order(seed, self._block or None)

    @property
    def num_windows(self) -> int | None:
        """Windows an epoch; None while the split grows."""
        return self.layout.num_windows

    def pieces(self, positions: Sequence[int]) -> list[Pieces]:
        """Return the pieces of the windows at some positions of the endless order."""
        if self._growing is not None and positions:
            blocks = max(positions) // self._block + 1
            self._growing.wait_for(blocks * self._growing.block_tokens)
        places = self._order.places(positions, self.num_windows)
        return [self.layout.pieces(epoch, window) for epoch, window in places]

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


def _block_windows(tokens: GrowingTokens, context_len: int) -> int:
    """Windows shuffled together: one less than fit, so that block n needs no token of a later one.

    A window is predicted from the token before it, and the phase moves all by less than a window.
    """
    block = tokens.block_tokens // context_len - 1
    if block < 1:
        raise ConfigError(
            f"context_len={context_len} does not fit twice into a block of {tokens.block_tokens} "
            "tokens; set --no-tokenize-ahead"
        )
    return block
