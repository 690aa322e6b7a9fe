"""How much of the validation split stands word for word in the training split.

Copies of a whole document are on one side already (packing.py); this finds passages: quotations,
licences, files that differ in a line. Validation documents are cut into blocks of n tokens, n being
13 (as in arXiv:2005.14165, appendix C) or more where tokens are so short that 13 of them do not
make 50 bytes, and each block is looked for at every place of the training split.

Memory: 8 bytes a validation block, of which at most 4 million are checked, evenly spread, and 16 MB
for a table that turns away nearly all training positions; the training split is read a chunk at a
time. Not here: removing anything.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmlab.data.shards import Shards, Tokens

Ids = Tokens | NDArray[Any]

MIN_NGRAM_TOKENS, MIN_NGRAM_BYTES = 13, 50

_MAX_BLOCKS = 2**22
_CHUNK_TOKENS = 2**18
_TABLE_BITS = 24
_BASE = 0x9E3779B97F4A7C15
"""Of the rolling hash: any odd number without pattern, modulo 2**64."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What was found."""

    ngram_tokens: int
    """Tokens in a block."""

    blocks: int = 0
    """Validation blocks looked for."""

    blocks_found: int = 0
    """Blocks that stand somewhere in the training split."""

    documents: int = 0
    """Validation documents with at least one block."""

    documents_touched: int = 0
    """Documents of which a block was found."""

    documents_mostly_found: int = 0
    """Documents of which half of the blocks or more were found."""

    @property
    def note(self) -> str:
        """What to tell the user; empty when nothing was found."""
        if self.documents_mostly_found:
            return f"warning: {self}; the validation loss will look too good"
        return str(self) if self.blocks_found else ""

    def __str__(self) -> str:
        share = self.blocks_found / max(self.blocks, 1)
        return (
            f"{share:.1%} of the held-out text also stands in the training split "
            f"({self.ngram_tokens} tokens in a row); "
            f"{self.documents_touched} of {self.documents} held-out documents share some, "
            f"{self.documents_mostly_found} half or more"
        )


def ngram_tokens(bytes_per_token: float) -> int:
    """Return how many tokens in a row count as a copy: 13, or as many as make 50 bytes."""
    return max(MIN_NGRAM_TOKENS, round(MIN_NGRAM_BYTES / bytes_per_token + 0.5))


def find_overlap(train: Ids, val: Ids, val_starts: NDArray[np.int64], *, ngram: int) -> Overlap:
    """Look for the blocks of the validation documents in the training split.

    Args:
        train: ids of the training split; every document ends with eos, which is in no block.
        val: ids of the validation split.
        val_starts: first token of each validation document.
        ngram: tokens in a block.
    """
    starts, documents = _blocks(val_starts, len(val), ngram)  # (blocks,)
    if not len(starts):
        return Overlap(ngram_tokens=ngram)
    hashes = _hashes_at(val, starts, ngram)
    wanted = np.unique(hashes)
    seen = np.zeros(len(wanted), bool)
    table = np.zeros(2**_TABLE_BITS, bool)
    table[_slot(wanted)] = True
    for _, found in _rolling(train, ngram):
        likely = found[table[_slot(found)]]
        at = np.minimum(np.searchsorted(wanted, likely), len(wanted) - 1)
        seen[at[wanted[at] == likely]] = True
    hit = seen[np.searchsorted(wanted, hashes)]
    _, which = np.unique(documents, return_inverse=True)
    of_document, found_of_document = np.bincount(which), np.bincount(which, weights=hit)
    return Overlap(
        ngram_tokens=ngram,
        blocks=len(starts),
        blocks_found=int(hit.sum()),
        documents=len(of_document),
        documents_touched=int((found_of_document > 0).sum()),
        documents_mostly_found=int((2 * found_of_document >= of_document).sum()),
    )


def overlap_between(training: Shards, held_out: Shards) -> Overlap:
    """Look for the validation documents of one folder in the training split of another.

    Args:
        training: a whole folder, not one that grows.
        held_out: another, from the same tokenizer.
    """
    tokens = sum(len(held_out.split(split)) for split in ("train", "val"))
    num_bytes = sum(held_out.num_bytes(split) for split in ("train", "val"))
    return find_overlap(
        training.split("train"),
        held_out.split("val"),
        held_out.doc_starts("val"),
        ngram=ngram_tokens(num_bytes / tokens),
    )


def _blocks(
    doc_starts: NDArray[np.int64], num_tokens: int, ngram: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first token and the document of each block; eos belongs to none."""
    counts = (np.diff(doc_starts, append=num_tokens) - 1) // ngram  # (documents,)
    documents = np.repeat(np.arange(len(doc_starts)), counts)  # (blocks,)
    number = np.arange(len(documents)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = doc_starts[documents] + number * ngram
    every = -(-len(starts) // _MAX_BLOCKS) or 1
    return starts[::every], documents[::every]


def _hashes_at(tokens: Ids, starts: NDArray[np.int64], ngram: int) -> NDArray[np.uint64]:
    """Return the hash of the n-gram at each start; starts ascend."""
    pieces = [np.empty(0, np.uint64)]
    for first, hashes in _rolling(tokens, ngram):
        low, high = np.searchsorted(starts, (first, first + len(hashes)))
        pieces.append(hashes[starts[low:high] - first])
    return np.concatenate(pieces)


def _rolling(tokens: Ids, ngram: int) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    """Yield, chunk by chunk, its first position and the hash of the n-gram at each position.

    The hash is sum of id * base**place, modulo 2**64; sums up to each place give that of any
    n-gram by one subtraction, whatever n is.
    """
    num_ids = _CHUNK_TOKENS + ngram - 1
    up = _powers(_BASE, num_ids)
    down = _powers(pow(_BASE, -1, 2**64), num_ids)
    for first in range(0, len(tokens) - ngram + 1, _CHUNK_TOKENS):
        ids = tokens[first : first + num_ids].astype(np.uint64) + np.uint64(1)
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(ids * up[: len(ids)])])
        yield first, (sums[ngram:] - sums[:-ngram]) * down[: len(ids) - ngram + 1]


def _powers(base: int, count: int) -> NDArray[np.uint64]:
    powers = np.full(count, base, np.uint64)
    powers[0] = 1
    return np.cumprod(powers)


def _slot(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return hashes >> np.uint64(64 - _TABLE_BITS)
