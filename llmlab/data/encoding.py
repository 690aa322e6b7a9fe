"""Tokenize a stream of documents, in order, on as many processes as repay their start.

Small corpora stay in this process; after `_INLINE_BYTES` of text the rest goes to workers, with a
bounded number of batches under way. The order and the ids are the same either way.
"""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from llmlab.errors import DataError
from llmlab.tokenizers import Tokenizer

Key = TypeVar("Key")
Batch = list[tuple[Key, str]]

_INLINE_BYTES = 8 * 2**20
_BATCH_CHARS = 2**19

_worker_tokenizer: Tokenizer | None = None
"""The tokenizer of a worker process, loaded once when it starts."""


def encode_documents(
    documents: Iterable[tuple[Key, str]],
    tokenizer: Tokenizer,
    folder: Path,
    num_workers: int | None = None,
) -> Iterator[tuple[Key, NDArray[np.uint32]]]:
    """Yield (key, token ids) for every (key, text), in order.

    Args:
        documents: keys are returned as they came.
        tokenizer: used in this process.
        folder: where workers load the same tokenizer from.
        num_workers: 1 for no other process; None for the number of cores.

    Raises:
        DataError: a worker process died.
    """
    batches = _batches(documents)
    limit = _INLINE_BYTES if num_workers is None else 0
    if num_workers is None:
        num_workers = os.cpu_count() or 1
    done = 0
    for batch in batches:
        if num_workers > 1 and done >= limit:
            yield from _on_workers(chain([batch], batches), folder, num_workers)
            return
        yield from _paired(batch, _encode(tokenizer, [text for _, text in batch]))
        done += sum(len(text) for _, text in batch)


def _batches(documents: Iterable[tuple[Key, str]]) -> Iterator[Batch[Key]]:
    batch: Batch[Key] = []
    chars = 0
    for key, text in documents:
        batch.append((key, text))
        chars += len(text)
        if chars >= _BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def _on_workers(
    batches: Iterable[Batch[Key]], folder: Path, num_workers: int
) -> Iterator[tuple[Key, NDArray[np.uint32]]]:
    # A fresh interpreter a worker: forking a process that runs torch threads can hang.
    context = multiprocessing.get_context("spawn")
    under_way: deque[tuple[Batch[Key], Future[list[NDArray[np.uint32]]]]] = deque()
    with ProcessPoolExecutor(num_workers, context, _start_worker, (str(folder),)) as pool:
        try:
            for batch in batches:
                texts = [text for _, text in batch]
                under_way.append((batch, pool.submit(_encode_in_worker, texts)))
                if len(under_way) > 2 * num_workers:
                    done, ids = under_way.popleft()
                    yield from _paired(done, ids.result())
            for done, ids in under_way:
                yield from _paired(done, ids.result())
        except BrokenProcessPool as error:
            raise DataError(
                "a tokenizing process died; in a script, call pack() under "
                "`if __name__ == '__main__':`, or use num_workers=1"
            ) from error


def _paired(batch: Batch[Key], ids: list[NDArray[np.uint32]]) -> Iterator[tuple[Key, Any]]:
    return zip((key for key, _ in batch), ids, strict=True)


def _encode(tokenizer: Tokenizer, texts: list[str]) -> list[NDArray[np.uint32]]:
    return [np.asarray(ids, dtype=np.uint32) for ids in tokenizer.encode_batch(texts)]


def _start_worker(folder: str) -> None:
    global _worker_tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _worker_tokenizer = Tokenizer.load(folder)


def _encode_in_worker(texts: list[str]) -> list[NDArray[np.uint32]]:
    assert _worker_tokenizer is not None
    return _encode(_worker_tokenizer, texts)
