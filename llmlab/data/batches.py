"""Batches of token ids from a shards folder.

Training reads windows of `context_len` + 1 tokens, cut from the split end to end, in an order that
is a pure function of (seed, position): a position is the whole state, so resuming is exact and
takes no skipping. Windows run across document ends; eos marks them. Not here: masks between
documents, devices.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmlab.data.batch import IGNORED, Batch
from llmlab.data.shards import Shards, Split
from llmlab.errors import ConfigError, DataError


class Batches:
    """Endless shuffled batches; every window comes once an epoch.

    Each epoch draws a new phase, so that windows start at other tokens, and a new order.

    Args:
        shards: the folder.
        split: `train` or `val`.
        batch_size: windows a batch, B.
        context_len: tokens a window, T.
        seed: of the order.

    Raises:
        ConfigError: the split has too few tokens for one window, or a size is below 1.
    """

    def __init__(
        self, shards: Shards, split: Split, *, batch_size: int, context_len: int, seed: int
    ) -> None:
        self._tokens = shards.split(split)
        _check_sizes(batch_size, context_len)
        if len(self._tokens) <= context_len:
            raise ConfigError(
                f"context_len={context_len} needs {context_len + 1} tokens, but the {split} split "
                f"of {shards.folder} has {len(self._tokens)}; use a smaller context or more data"
            )
        self.batch_size = batch_size
        self.context_len = context_len
        self.num_windows = max(1, (len(self._tokens) - context_len) // context_len)
        """Windows an epoch."""
        self._identity = {
            "tokenizer_fingerprint": shards.meta["tokenizer_fingerprint"],
            "num_tokens": len(self._tokens),
            "split": split,
            "context_len": context_len,
            "seed": seed,
        }
        self._seed = seed
        self._position = 0
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def next(self) -> Batch:
        """Return `(input_ids, labels)`, int64 (B, T): labels[b, t] follows input_ids[b, t]."""
        starts = [self.window_start(self._position + row) for row in range(self.batch_size)]
        self._position += self.batch_size
        rows = np.stack([self._tokens[at : at + self.context_len + 1] for at in starts])
        windows = torch.from_numpy(rows.astype(np.int64))  # (B, T + 1)
        return Batch(windows[:, :-1].contiguous(), windows[:, 1:].contiguous())

    def window_start(self, position: int) -> int:
        """Return the first token of the window at a position of the endless order."""
        epoch, index = divmod(position, self.num_windows)
        if epoch != self._order[0]:
            self._order = (epoch, self._epoch_starts(epoch))
        return int(self._order[1][index])

    @property
    def epoch(self) -> float:
        """Passes over the split so far."""
        return self._position / self.num_windows

    def state_dict(self) -> dict[str, Any]:
        """Return the position, and what it is a position in."""
        return {"position": self._position, **self._identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position; the batch size may differ from the saved run's.

        Raises:
            DataError: the state belongs to other data, another context length or another seed.
        """
        for key, value in self._identity.items():
            if state.get(key) != value:
                raise DataError(
                    f"cannot resume: the saved {key} is {state.get(key)!r}, this run has {value!r};"
                    f" resume with the same {key}, or start anew"
                )
        self._position = int(state["position"])

    def _epoch_starts(self, epoch: int) -> NDArray[np.int64]:
        generator = np.random.Generator(np.random.PCG64([self._seed, epoch]))
        last_phase = len(self._tokens) - 1 - self.num_windows * self.context_len
        phase = generator.integers(last_phase + 1)
        return phase + generator.permutation(self.num_windows) * self.context_len


def val_batches(
    shards: Shards, split: Split = "val", *, batch_size: int, context_len: int
) -> Iterator[Batch]:
    """Yield `(input_ids, labels)`, int64 (B, T), that score every token of a split exactly once.

    The first token is predicted from eos, as after a document before it. Windows follow one
    another without overlap; the last rows are padded with eos and the label -100. The last batch
    may have fewer rows.

    Raises:
        ConfigError: the split is empty, or a size is below 1.
    """
    _check_sizes(batch_size, context_len)
    tokens = shards.split(split)
    if not len(tokens):
        raise ConfigError(
            f"the {split} split of {shards.folder} is empty; pack it with --val-fraction above 0"
        )
    step = batch_size * context_len
    before = shards.eos_token_id
    for start in range(0, len(tokens), step):
        ids = tokens[start : start + step].astype(np.int64)
        rows = -(-len(ids) // context_len)
        padding = rows * context_len - len(ids)
        inputs = np.concatenate([[before], ids[:-1], np.full(padding, shards.eos_token_id)])
        labels = np.concatenate([ids, np.full(padding, IGNORED)])
        before = ids[-1]
        yield Batch(
            torch.from_numpy(inputs.reshape(rows, context_len)),  # (B, T)
            torch.from_numpy(labels.reshape(rows, context_len)),
        )


def _check_sizes(batch_size: int, context_len: int) -> None:
    if batch_size < 1 or context_len < 1:
        raise ConfigError(
            f"batch_size={batch_size} and context_len={context_len} must both be at least 1"
        )
