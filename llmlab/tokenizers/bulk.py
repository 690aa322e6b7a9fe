"""Byte-level BPE of many texts, or of long ones, on all cores: UTF-8 in, arrays of ids out.

The ids are those of models/bpe.py and the split's expression, which stay the specification; here
the work is done by compiled loops that hold no interpreter lock, so plain threads share it. Small
texts travel together, and a long one is cut where no pre-token is, so that either uses every
core. Importing this module imports numba (0.3 s), and the first use on a machine compiles for
about ten seconds. Not here: added tokens and normalisation (encoder.py), texts that do not fit
into memory (long_texts.py).
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from llmlab.tokenizers.alphabet import spell, unspell
from llmlab.tokenizers.compiled.char_classes import char_classes
from llmlab.tokenizers.compiled.encoding import (
    OVERRUN,
    Tables,
    Workspace,
    encode_spans,
    new_workspace,
)
from llmlab.tokenizers.compiled.merging import fill_pairs, pair_table
from llmlab.tokenizers.compiled.scanner import safe_cut
from llmlab.tokenizers.compiled.words import fill_words, word_table
from llmlab.tokenizers.models.bpe import BPE
from llmlab.tokenizers.scan_rules import ScanRules

CACHED_PIECES = 2**16
"""Pre-tokens a thread remembers, 128 bytes each: 8 MB."""

_JOB_BYTES = 2**18
"""Texts travel together up to this size."""

_CHUNK_BYTES = 2**20
"""A longer text is cut."""


@dataclass(frozen=True)
class _Job:
    """Whole texts, or a stretch of one."""

    texts: Sequence[bytes]
    start: int = 0
    stop: int | None = None
    goes_on: bool = False
    """Whether the text has another stretch."""


class BulkBPE:
    """Encodes bytes as a BPE and a split say. It never changes what it answers; threads share it.

    Memory: each thread at work has a cache of `CACHED_PIECES` and room for the ids of one job,
    12 MB together, kept for the next call. A pre-token of many megabytes, which nothing can cut,
    takes about 50 bytes a byte while it is merged.

    Args:
        bpe: what turns a pre-token into ids.
        rules: how text is cut (`Split.rules`).
        cached_pieces: pre-tokens a thread remembers, a power of two.
    """

    def __init__(self, bpe: BPE, rules: ScanRules, *, cached_pieces: int = CACHED_PIECES) -> None:
        self._rules = rules
        self._classes = char_classes()
        self._tables = _tables(bpe)
        self._new_space = partial(new_workspace, cached_pieces)
        self._idle: list[tuple[Workspace, NDArray[np.uint32]]] = []

    def encode(self, text: bytes, *, num_threads: int | None = None) -> NDArray[np.uint32]:
        """Return the ids of a text; see `encode_many`."""
        return self.encode_many([text], num_threads=num_threads)[0]

    def encode_many(
        self, texts: Sequence[bytes], *, num_threads: int | None = None
    ) -> list[NDArray[np.uint32]]:
        """Return the ids of each text.

        Arrays of small texts are parts of one larger array (of about 1 MB), which stays in memory
        as long as any of them does.

        Args:
            texts: valid UTF-8, as `str.encode` gives it; this is not checked.
            num_threads: None for the number of cores.
        """
        jobs = list(self._jobs(texts))
        encoded = self._run(jobs, num_threads or os.cpu_count() or 1)
        ids: list[NDArray[np.uint32]] = []
        begun: list[NDArray[np.uint32]] = []
        for job, arrays in zip(jobs, encoded, strict=True):
            if job.goes_on or begun:
                begun += arrays
            if job.goes_on:
                continue
            ids += [np.concatenate(begun)] if begun else arrays
            begun = []
        return ids

    def safe_cut(self, text: bytes) -> int:
        """Return the last place that cuts no pre-token, whatever may follow; 0 for none."""
        data = np.frombuffer(text, np.uint8)
        return safe_cut(data, 0, len(data), self._classes, self._rules) if text else 0

    def _run(self, jobs: list[_Job], num_threads: int) -> Iterator[list[NDArray[np.uint32]]]:
        num_threads = min(num_threads, len(jobs))
        if num_threads < 2:
            yield from map(self._encode_job, jobs)
            return
        with ThreadPoolExecutor(num_threads, "encode") as pool:
            yield from pool.map(self._encode_job, jobs)

    def _jobs(self, texts: Sequence[bytes]) -> Iterator[_Job]:
        """Yield the work in the order of the texts."""
        first, num_bytes = 0, 0
        for place, text in enumerate(texts):
            if len(text) > _CHUNK_BYTES:
                if first < place:
                    yield _Job(texts[first:place])
                yield from self._stretches(text)
                first, num_bytes = place + 1, 0
            elif (num_bytes := num_bytes + len(text)) >= _JOB_BYTES:
                yield _Job(texts[first : place + 1])
                first, num_bytes = place + 1, 0
        if first < len(texts):
            yield _Job(texts[first:])

    def _stretches(self, text: bytes) -> Iterator[_Job]:
        data = np.frombuffer(text, np.uint8)
        start, reach = 0, _CHUNK_BYTES
        while start + reach < len(text):
            stop = start + reach
            while data[stop] & 0xC0 == 0x80:  # within a character
                stop -= 1
            cut = safe_cut(data, start, stop, self._classes, self._rules)
            if cut > start:
                yield _Job([text], start, cut, goes_on=True)
                start, reach = cut, _CHUNK_BYTES
            else:
                reach *= 2  # so that a text without a place to cut is not looked at too often
        yield _Job([text], start)

    def _encode_job(self, job: _Job) -> list[NDArray[np.uint32]]:
        if len(job.texts) == 1:
            text = job.texts[0]
            stop = len(text) if job.stop is None else job.stop
            bounds = np.array([job.start, stop], np.int64)
        else:
            text = b"".join(job.texts)
            bounds = np.zeros(len(job.texts) + 1, np.int64)
            np.cumsum([len(text) for text in job.texts], out=bounds[1:])
        if bounds[0] == bounds[-1]:
            return [np.empty(0, np.uint32) for _ in job.texts]
        ids, ends = self._encode_spans(np.frombuffer(text, np.uint8), bounds)
        starts = [0, *ends]
        return [ids[start:end] for start, end in zip(starts, ends, strict=False)]

    def _encode_spans(
        self, data: NDArray[np.uint8], bounds: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint32], list[int]]:
        needed = int(bounds[-1] - bounds[0]) + OVERRUN
        try:
            space, room = self._idle.pop()
        except IndexError:
            space = self._new_space()
            room = np.empty(_JOB_BYTES + _CHUNK_BYTES + OVERRUN, np.uint32)
        out = room if needed <= len(room) else np.empty(needed, np.uint32)
        ends = np.empty(len(bounds) - 1, np.int64)
        count = encode_spans(
            data, bounds, self._classes, self._rules, self._tables, space, out, ends
        )
        ids = out[:count].copy()
        self._idle.append((space, room))
        return ids, ends.tolist()


def _tables(bpe: BPE) -> Tables:
    merges = np.array(bpe.merges, np.uint32).reshape(-1, 3)
    pairs = pair_table(len(merges))
    fill_pairs(pairs, merges)
    known = {data: i for word, i in bpe.whole_words.items() if spell(data := unspell(word)) == word}
    spellings = np.frombuffer(b"".join(known) + b"\0", np.uint8)  # numpy reads no empty buffer
    bounds = np.zeros(len(known) + 1, np.int64)
    np.cumsum([len(word) for word in known], out=bounds[1:])
    words = word_table(len(known))
    fill_words(words, spellings, bounds, np.array(list(known.values()), np.int64))
    byte_ids = np.array([-1 if i is None else i for i in bpe.byte_ids], np.int64)
    return Tables(byte_ids, pairs, words, spellings)
