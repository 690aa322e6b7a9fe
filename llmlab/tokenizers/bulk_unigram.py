"""Unigram for many texts on all cores: UTF-8 in, arrays of ids out.

The ids are those of models/unigram.py, which stays the specification; here the work is done by
compiled loops that hold no interpreter lock, so plain threads share it. Importing this module
imports numba. Not here: added tokens and normalisation (encoder.py).
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from llmlab.errors import TokenizerError
from llmlab.tokenizers.alphabet import utf8
from llmlab.tokenizers.compiled.lattice import Tables, encode_texts
from llmlab.tokenizers.compiled.trie import build_trie
from llmlab.tokenizers.models.unigram import Unigram
from llmlab.tokenizers.models.unknown import byte_ids

_JOB_BYTES = 2**18
"""Texts travel together up to this size."""

_NO_ID = 2**32 - 1


class BulkUnigram:
    """Segments UTF-8 as a model says. It never changes; threads share it.

    Memory: each thread at work takes about 16 bytes a byte of the longest text.

    Args:
        model: the pieces.
        cuts_at_marks: whether a text is cut before each U+2581 first (`CUTS["marks"]`); else it
            is segmented as a whole, as SentencePiece does.

    Raises:
        TokenizerError: byte fallback is asked for and a byte has no piece.
    """

    def __init__(self, model: Unigram, *, cuts_at_marks: bool = False) -> None:
        self._tables = _tables(model, cuts_at_marks=cuts_at_marks)

    def encode_many(
        self, texts: Sequence[bytes], *, num_threads: int | None = None
    ) -> list[NDArray[np.uint32]]:
        """Return the ids of each text.

        Arrays of small texts are parts of one larger array (of about 1 MB), which stays in memory
        as long as any of them does.

        Args:
            texts: valid UTF-8, as `str.encode` gives it; this is not checked.
            num_threads: None for the number of cores.

        Raises:
            TokenizerError: a character has no piece, and the model nothing to write for it.
        """
        jobs = list(_jobs(texts))
        num_threads = min(num_threads or os.cpu_count() or 1, len(jobs))
        if num_threads < 2:
            return [ids for job in jobs for ids in self._encode(job)]
        with ThreadPoolExecutor(num_threads, "encode") as pool:
            return [ids for encoded in pool.map(self._encode, jobs) for ids in encoded]

    def _encode(self, texts: Sequence[bytes]) -> list[NDArray[np.uint32]]:
        bounds = np.zeros(len(texts) + 1, np.int64)
        np.cumsum([len(text) for text in texts], out=bounds[1:])
        ends = np.empty(len(texts), np.int64)
        out = np.empty(bounds[-1], np.uint32)
        data = np.frombuffer(b"".join([*texts, b"\0"]), np.uint8)  # numpy reads no empty buffer
        count = encode_texts(data, bounds, self._tables, out, ends)
        ids = out[:count].copy()
        if self._tables.unk_id == _NO_ID and (ids == _NO_ID).any():
            raise TokenizerError(
                "a character has no piece and the model has neither an unknown piece nor byte "
                "fallback; train it with one of them"
            )
        return np.split(ids, ends[:-1])


def _jobs(texts: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    first, num_bytes = 0, 0
    for place, text in enumerate(texts):
        if (num_bytes := num_bytes + len(text)) >= _JOB_BYTES:
            yield texts[first : place + 1]
            first, num_bytes = place + 1, 0
    if first < len(texts):
        yield texts[first:]


def _tables(model: Unigram, *, cuts_at_marks: bool) -> Tables:
    float_type = np.float32 if model.single_precision else np.float64
    scores = model.scores
    vocab = model.vocab
    ids = {utf8(piece): i for piece, i in vocab.items() if i not in model.unmatched and piece}
    pieces = sorted(ids)
    lengths = np.array([len(piece) for piece in pieces], np.int64)
    nodes = build_trie(
        np.frombuffer(b"".join(pieces) + b"\0", np.uint8), np.cumsum(lengths) - lengths, lengths
    )
    fallback = byte_ids(vocab) if model.byte_fallback else []
    return Tables(
        nodes=nodes,
        ids=np.array([ids[piece] for piece in pieces], np.int32),
        scores=np.array([scores[ids[piece]] for piece in pieces], float_type),
        unknown_score=float_type(model.unknown_score),
        limit=float_type(model.score_limit),
        unk_id=_NO_ID if model.unk_id is None else model.unk_id,
        byte_ids=np.array(fallback, np.int32),
        cuts_at_marks=cuts_at_marks,
    )
