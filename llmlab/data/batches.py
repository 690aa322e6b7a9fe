"""Batches of token ids from shards folders.

Training reads windows of `context_len` positions in one global order, a pure function of the seed:
the sample at each position is the same however many processes read and whatever the batch size is,
and a position is the whole state. Resuming is exact to the token and takes no skipping; it may
happen on another number of processes.

Not here: how documents lie in windows (windows.py), turns of several folders (mixture.py), devices.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from llmlab.data.batch import IGNORED, Batch
from llmlab.data.best_fit import PackingPlan
from llmlab.data.config import Packing
from llmlab.data.growing import GrowingTokens
from llmlab.data.mixture import Mixture
from llmlab.data.shards import Shards, Split, Tokens
from llmlab.data.windows import BestFitLayout, Pieces, Windows
from llmlab.errors import ConfigError, DataError


class Batches:
    """Endless shuffled batches; every window of a source comes once in each of its epochs.

    Args:
        shards: the folder, or several, whose ids come from one tokenizer.
        split: `train` or `val`.
        batch_size: windows in a batch of all processes together, B.
        context_len: positions in a window, T.
        seed: of the order.
        weights: share of the windows from each folder; None goes by their sizes, so that their
            epochs end together.
        packing: how documents are laid into windows.
        document_ids: whether batches carry them.
        rank: this process, which gets rows rank, rank + world_size, ... of each batch.
        world_size: number of processes.

    Raises:
        ConfigError: a split has too few tokens for one window, a size is below 1, or the weights
            do not go with the folders.
        DataError: the folders come from different tokenizers.
    """

    def __init__(
        self,
        shards: Shards | Sequence[Shards],
        split: Split = "train",
        *,
        batch_size: int,
        context_len: int,
        seed: int,
        weights: Sequence[float] | None = None,
        packing: Packing = "stream",
        document_ids: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        folders = [shards] if isinstance(shards, Shards) else list(shards)
        _check_sizes(batch_size, context_len)
        _check_ranks(batch_size, rank, world_size)
        _check_folders(folders, weights)
        self.batch_size, self.context_len = batch_size, context_len
        self._rank, self._world_size = rank, world_size
        self._document_ids = document_ids
        self._sources = [
            Windows(folder, split, context_len=context_len, seed=seed, packing=packing)
            for folder in folders
        ]
        self._mixture = Mixture(weights or self._sizes())
        self._identity = {
            "tokenizer_fingerprint": folders[0].meta["tokenizer_fingerprint"],
            "num_tokens": [_num_tokens(folder.split(split)) for folder in folders],
            "split": split,
            "context_len": context_len,
            "packing": packing,
            "shares": self._mixture.shares,
            "seed": seed,
        }

    def next(self) -> Batch:
        """Return this process's rows of the next batch."""
        turns = [self._mixture.next() for _ in range(self.batch_size)]
        mine = turns[self._rank :: self._world_size]
        B, T = len(mine), self.context_len
        input_ids = np.empty((B, T), np.int64)  # (B, T)
        labels = np.empty((B, T), np.int64)  # (B, T)
        numbers = np.empty((B, T), np.int32) if self._document_ids else None  # (B, T)
        for row, (source, pieces) in enumerate(self._pieces(mine)):
            source.write(
                pieces, input_ids[row], labels[row], None if numbers is None else numbers[row]
            )
        return Batch(
            torch.from_numpy(input_ids),
            torch.from_numpy(labels),
            None if numbers is None else torch.from_numpy(numbers),
        )

    @property
    def num_windows(self) -> list[int | None]:
        """Windows in an epoch of each source; None while it grows."""
        return [source.num_windows for source in self._sources]

    @property
    def epochs(self) -> list[float | None]:
        """Passes over each source so far, by all processes together; None while it grows."""
        sources = zip(self._mixture.taken, self.num_windows, strict=True)
        return [taken / windows if windows else None for taken, windows in sources]

    @property
    def shares(self) -> list[float]:
        """Share of the windows that comes from each source; they add up to 1."""
        return self._mixture.shares

    @property
    def plans(self) -> list[PackingPlan]:
        """How documents were placed, a plan a source; empty for `stream`."""
        layouts = [source.layout for source in self._sources]
        return [layout.plan for layout in layouts if isinstance(layout, BestFitLayout)]

    def state_dict(self) -> dict[str, Any]:
        """Return the windows taken from each source, and of what data."""
        return {"taken": list(self._mixture.taken), **self._identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved place; batch size and number of processes may differ from the saved run's.

        Raises:
            DataError: the state belongs to other data, another context length or another seed.
        """
        for key, value in self._identity.items():
            if state.get(key) != value:
                raise DataError(
                    f"cannot resume: the saved {key} is {state.get(key)!r}, this run has {value!r};"
                    f" resume with the same {key}, or start anew"
                )
        self._mixture.taken = [int(taken) for taken in state["taken"]]

    def _sizes(self) -> list[int]:
        sizes = self.num_windows
        if len(sizes) == 1:
            return [1]
        if None in sizes:
            raise ConfigError(
                "the size of text that is tokenized ahead is not known; set --weights, or "
                "--no-tokenize-ahead"
            )
        return [size for size in sizes if size]

    def _pieces(self, turns: list[tuple[int, int]]) -> list[tuple[Windows, Pieces]]:
        found: list[tuple[Windows, Pieces] | None] = [None] * len(turns)
        for number, source in enumerate(self._sources):
            rows = [row for row, (whose, _) in enumerate(turns) if whose == number]
            pieces = source.pieces([turns[row][1] for row in rows])
            for row, window in zip(rows, pieces, strict=True):
                found[row] = source, window
        return [pair for pair in found if pair is not None]


def val_batches(
    shards: Shards,
    split: Split = "val",
    *,
    batch_size: int,
    context_len: int,
    document_ids: bool = False,
) -> Iterator[Batch]:
    """Yield batches (B, T) that score every token of a split exactly once.

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
    before = eos = shards.eos_token_id
    for start in range(0, len(tokens), step):
        ids = tokens[start : start + step].astype(np.int64)
        rows = -(-len(ids) // context_len)
        padding = rows * context_len - len(ids)
        inputs = np.concatenate([[before], ids[:-1], np.full(padding, eos)])
        labels = np.concatenate([ids, np.full(padding, IGNORED)])
        begins = inputs == eos
        begins[len(ids) + 1 :] = False  # padding counts as one document
        numbers = begins.reshape(rows, context_len).cumsum(1, dtype=np.int32)  # (B, T)
        before = ids[-1]
        yield Batch(
            torch.from_numpy(inputs.reshape(rows, context_len)),  # (B, T)
            torch.from_numpy(labels.reshape(rows, context_len)),  # (B, T)
            torch.from_numpy(numbers) if document_ids else None,
        )


def _num_tokens(tokens: Tokens) -> int | None:
    return None if isinstance(tokens, GrowingTokens) else len(tokens)


def _check_sizes(batch_size: int, context_len: int) -> None:
    if batch_size < 1 or context_len < 1:
        raise ConfigError(
            f"batch_size={batch_size} and context_len={context_len} must both be at least 1"
        )


def _check_ranks(batch_size: int, rank: int, world_size: int) -> None:
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank={rank} is not between 0 and world_size={world_size} less one")
    if batch_size < world_size:
        raise ConfigError(
            f"batch_size={batch_size} leaves some of {world_size} processes without a window; "
            f"use {world_size} or more windows a batch, or fewer processes"
        )


def _check_folders(folders: list[Shards], weights: Sequence[float] | None) -> None:
    if not folders or (weights is not None and len(weights) != len(folders)):
        raise ConfigError(
            f"{len(folders)} shards folders and {len(weights or ())} weights do not go together; "
            "give a weight for each folder, or none"
        )
    first, *others = folders
    for other in others:
        if other.meta["tokenizer_fingerprint"] != first.meta["tokenizer_fingerprint"]:
            raise DataError(
                f"{other.folder} was packed with another tokenizer than {first.folder}; pack it "
                f"again with {first.tokenizer}"
            )
