"""Tokenize a stream of documents, in order, while the next ones are being read.

The tokenizer spreads a batch over all cores itself; here one batch is under way on a thread while
the caller reads the following one and writes the one before, so at most three are in memory.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from llmlab.tokenizers import Tokenizer

Key = TypeVar("Key")
Batch = list[tuple[Key, str]]

_BATCH_CHARS = 2**23
"""Enough for every core, and a few tens of MB with its ids."""


def encode_documents(
    documents: Iterable[tuple[Key, str]], tokenizer: Tokenizer, num_threads: int | None = None
) -> Iterator[tuple[Key, NDArray[np.uint32]]]:
    """Yield (key, token ids) for every (key, text), in order.

    Args:
        documents: keys are returned as they came.
        tokenizer: what decides the ids; special tokens in the texts are text.
        num_threads: how many encode; None for the number of cores.

    Raises:
        TokenizerError: a text has a lone surrogate.
    """
    encode = partial(tokenizer.encode_batch_to_arrays, num_threads=num_threads)
    under_way: tuple[Batch[Key], Future[list[NDArray[np.uint32]]]] | None = None
    with ThreadPoolExecutor(1, "encode") as pool:
        for batch in _batches(documents):
            begun = batch, pool.submit(encode, [text for _, text in batch])
            if under_way:
                yield from _paired(*under_way)
            under_way = begun
        if under_way:
            yield from _paired(*under_way)


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


def _paired(
    batch: Batch[Key], encoded: Future[list[NDArray[np.uint32]]]
) -> Iterator[tuple[Key, NDArray[np.uint32]]]:
    return zip((key for key, _ in batch), encoded.result(), strict=True)
