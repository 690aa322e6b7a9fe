"""Shards that are read while they are written: training starts before a corpus is tokenized.

A thread tokenizes the sources into a shards folder, one file ("block") of 2 million tokens after
the other, and says in `growing.json` how far it is:

    growing.json   format, tokenizer and sources; counts of what is on disk; whether that is all
    the rest       a shards folder (shards.py); its meta.json comes last

Training goes through the blocks in the order of the text and through the windows of a block in
shuffled order, and waits for a block that is not there yet: which sample comes when depends on the
text and the seed only, not on how fast either side is. A thread that is stopped or killed goes on
behind its last whole block; the documents before it are read past, not tokenized again.

Validation takes what was held out of the first block, so that it stays the same all the way.
Not here: what is written for a document (packing.py), the order (order.py).
"""

import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from llmlab.data.config import PackConfig
from llmlab.data.packing import Writing, checked_tokenizer
from llmlab.data.shards import FORMAT_VERSION, Shards, SplitWriter, Tokens, token_dtype
from llmlab.errors import DataError
from llmlab.outputs import whole_file
from llmlab.track import silent

BLOCK_TOKENS = 2**21
"""Tokens in a block: some seconds of tokenizing, and thousands of windows to shuffle."""

_POLL_S = 0.01


class TokenizingAhead:
    """The thread that writes; it begins at once, behind what an earlier one left.

    Args:
        config: what to read and where to write; `shard_tokens` is the size of a block.

    Raises:
        DataError: the folder holds the beginning of another corpus.
        TokenizerError: the tokenizer folder cannot be used.
    """

    def __init__(self, config: PackConfig) -> None:
        self._config = config
        self._tokenizer = checked_tokenizer(config.tokenizer)
        config.out.mkdir(parents=True, exist_ok=True)
        self._tokenizer.save(config.out / "tokenizer")
        self._state = self._begin()
        self._stopping = Event()
        self._pool = ThreadPoolExecutor(1, "tokenize-ahead")
        self.work: Future[None] = self._pool.submit(self._write)
        """Done when all is written, or with the error that ended it."""

    def close(self) -> None:
        """Stop writing; what is whole stays."""
        self._stopping.set()
        self._pool.shutdown()

    def _begin(self) -> dict[str, Any]:
        config, tokenizer = self._config, self._tokenizer
        corpus = {
            "format_version": FORMAT_VERSION,
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "eos_token_id": tokenizer.eos_token_id,
            "dtype": token_dtype(tokenizer.vocab_size).str,
            "shard_tokens": config.shard_tokens,
            "val_fraction": config.val_fraction,
            "sources": list(config.sources),
        }
        if (config.out / "growing.json").is_file():
            state = read_state(config.out)
            for key, value in corpus.items():
                if state.get(key) != value:
                    raise DataError(
                        f"{config.out} was begun with {key}={state.get(key)!r}, this run has "
                        f"{value!r}; go on with the same, or start anew"
                    )
            return state
        (config.out / "meta.json").unlink(missing_ok=True)
        state = {**corpus, "complete": False, "splits": None, "first_val": None}
        _save_state(config.out, state)
        return state

    def _write(self) -> None:
        if self._state["complete"]:
            return
        writing = Writing(self._config, self._tokenizer, self._config.out, silent, self._go_on)
        try:
            meta = writing.write(done=self._state["splits"], on_document=self._after_document)
            writing.finish(meta)
        except _StoppedError:
            return
        self._save(complete=True, splits=meta["splits"])

    def _go_on(self) -> None:
        if self._stopping.is_set():
            raise _StoppedError

    def _after_document(self, splits: dict[str, SplitWriter]) -> None:
        before = self._state["splits"]["train"]["tokens"] if self._state["splits"] else 0
        block = self._config.shard_tokens
        if splits["train"].num_tokens // block > before // block:
            for writer in splits.values():
                writer.flush()
            counts = {name: writer.counts for name, writer in splits.items()}
            self._save(splits=counts, first_val=self._state["first_val"] or counts["val"])

    def _save(self, **changes: Any) -> None:
        self._state = {**self._state, **changes}
        _save_state(self._config.out, self._state)


class _StoppedError(Exception):
    """The run is over."""


class GrowingTokens(Tokens):
    """The training split as far as it is whole: all its finished blocks."""

    def __init__(self, folder: Path, work: Future[None] | None) -> None:
        state = read_state(folder)
        super().__init__([], np.dtype(state["dtype"]), state["shard_tokens"])
        self._folder, self._work = folder, work
        self.block_tokens: int = state["shard_tokens"]
        self.complete = False
        """Whether this is the whole split."""
        self._look()

    def wait_for(self, num_tokens: int) -> None:
        """Return when so many tokens are there, or all there will be.

        Raises:
            LabError: tokenizing failed.
        """
        while len(self) < num_tokens and not self.complete:
            if self._work is not None and self._work.done():
                self._work.result()
            self._look()
            time.sleep(_POLL_S)

    def _look(self) -> None:
        state = read_state(self._folder)
        num_tokens = state["splits"]["train"]["tokens"] if state["splits"] else 0
        if not state["complete"]:
            num_tokens -= num_tokens % self.block_tokens
        while self._len < num_tokens:
            self._map(self._folder / f"train-{len(self._shards):05d}.bin")
        self.complete = state["complete"]


class GrowingShards(Shards):
    """A shards folder in the making, opened for reading: by this process or others of the machine.

    Args:
        folder: what a `TokenizingAhead` writes; its first block is whole.
        work: the writer's, whose errors a waiting reader raises; None in other processes.
    """

    def __init__(self, folder: Path, work: Future[None] | None = None) -> None:
        self.folder = folder
        self.tokenizer = folder / "tokenizer"
        state = read_state(folder)
        self.meta = {**state, "splits": {**state["splits"], "val": state["first_val"]}}
        val = sorted(folder.glob("val-?????.bin"))
        self._splits = {
            "train": GrowingTokens(folder, work),
            "val": Tokens(
                val,
                np.dtype(state["dtype"]),
                state["shard_tokens"],
                num_tokens=state["first_val"]["tokens"],
            ),
        }


def first_block(folder: Path, work: Future[None] | None) -> bool:
    """Wait for the first block; say whether the folder can be trained on as it grows.

    It cannot when the corpus ends before, or when none of its documents so far is held out: then
    the end of one is to be held out, for which all must be known.

    Raises:
        LabError: tokenizing failed.
    """
    while (state := read_state(folder))["first_val"] is None and not state["complete"]:
        if work is not None and work.done():
            work.result()
        time.sleep(_POLL_S)
    return bool(state["first_val"] and state["first_val"]["tokens"])


def read_state(folder: Path) -> dict[str, Any]:
    """Read growing.json."""
    return json.loads((folder / "growing.json").read_text(encoding="utf-8"))


def _save_state(folder: Path, state: dict[str, Any]) -> None:
    with whole_file(folder / "growing.json") as path:
        path.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
