"""The shards folder: token ids in flat files, mapped into memory.

    train-00000.bin ...   token ids, little-endian uint16 (uint32 above 65,536 ids), no header
    train-docs.npy        int64, where each document starts, counted over all the split's files
    val-00000.bin ...     the same for the documents held out
    meta.json             format version, tokenizer fingerprint, counts, sources and their hashes
    tokenizer/            the tokenizer that made the ids

All files of a split but the last hold `shard_tokens` ids, so token i lies in file
i // shard_tokens; documents run on across files. Not here: what is written (packing.py), batches.
"""

import json
from array import array
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from llmlab.errors import DataError

Split = Literal["train", "val"]

FORMAT_VERSION = 1


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the little-endian dtype that holds ids below `vocab_size`."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


class SplitWriter:
    """Append documents to the files of one split, holding one document at a time.

    Args:
        folder: the shards folder.
        split: `train` or `val`.
        dtype: of the ids on disk.
        shard_tokens: tokens a file.
        done: the `counts` of an earlier writer, to go on behind its documents; what it wrote
            after them is taken away.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        dtype: np.dtype[Any],
        shard_tokens: int,
        done: Mapping[str, int] | None = None,
    ) -> None:
        self._folder, self._split, self._dtype = folder, split, dtype
        self._shard_tokens = shard_tokens
        self.num_tokens = done["tokens"] if done else 0
        self.num_bytes = done["bytes"] if done else 0
        number, within = divmod(self.num_tokens, shard_tokens)
        kept = {self._shard(before) for before in range(number)}
        for stale in set(folder.glob(f"{split}-*.bin")) - kept - {self._shard(number)}:
            stale.unlink()
        self._file = self._shard(number).open("ab")
        self._file.truncate(within * dtype.itemsize)
        self._starts = array("q")
        self._flushed_starts = folder / f"{split}-docs.part"
        if done:
            with self._flushed_starts.open("r+b") as file:
                self._starts.fromfile(file, done["documents"])
                file.truncate()
        else:
            self._flushed_starts.unlink(missing_ok=True)
        self._num_flushed = len(self._starts)

    def add(self, ids: NDArray[Any], num_bytes: int) -> None:
        """Append one document: its ids, and how many UTF-8 bytes they stand for."""
        self._starts.append(self.num_tokens)
        self.num_bytes += num_bytes
        while len(ids):
            room = self._shard_tokens - self.num_tokens % self._shard_tokens
            piece, ids = ids[:room], ids[room:]
            self._file.write(piece.astype(self._dtype).tobytes())
            self.num_tokens += len(piece)
            if len(piece) == room:
                self._file.close()
                self._file = self._shard(self.num_tokens // self._shard_tokens).open("wb")

    def flush(self) -> None:
        """Bring onto the disk what another writer needs to go on from `counts`."""
        self._file.flush()
        with self._flushed_starts.open("ab") as file:
            self._starts[self._num_flushed :].tofile(file)
        self._num_flushed = len(self._starts)

    @property
    def counts(self) -> dict[str, int]:
        """Documents, tokens and UTF-8 bytes so far."""
        return {
            "documents": len(self._starts),
            "tokens": self.num_tokens,
            "bytes": self.num_bytes,
        }

    def _shard(self, number: int) -> Path:
        return self._folder / f"{self._split}-{number:05d}.bin"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        last = Path(self._file.name)
        if self.num_tokens and last.stat().st_size == 0:
            last.unlink()
        if error is None:
            starts = np.frombuffer(self._starts, dtype=np.int64)
            np.save(self._folder / f"{self._split}-docs.npy", starts)
            self._flushed_starts.unlink(missing_ok=True)


class Tokens:
    """The ids of a split as one array over its mapped files; slices are plain numpy arrays.

    Args:
        files: in order.
        dtype: of the ids.
        shard_tokens: ids in each file but the last.
        num_tokens: how many of the ids count; None for all.
    """

    def __init__(
        self,
        files: list[Path],
        dtype: np.dtype[Any],
        shard_tokens: int,
        num_tokens: int | None = None,
    ) -> None:
        self.dtype = dtype
        self._shard_tokens = shard_tokens
        self._shards: list[NDArray[Any]] = []
        self._len = 0
        for file in files:
            self._map(file)
        self._len = self._len if num_tokens is None else min(self._len, num_tokens)

    def __len__(self) -> int:
        return self._len

    @property
    def shape(self) -> tuple[int]:
        """`(number of tokens,)`."""
        return (self._len,)

    def __getitem__(self, index: int | slice) -> Any:
        if not isinstance(index, slice):
            at = range(self._len)[index]
            return self._shards[at // self._shard_tokens][at % self._shard_tokens]
        start, stop, step = index.indices(self._len)
        if step != 1:
            raise IndexError(f"step {step} is not 1; take a plain slice and step through that")
        pieces = []
        while start < stop:
            shard, at = divmod(start, self._shard_tokens)
            piece = self._shards[shard][at : at + stop - start]
            pieces.append(piece)
            start += len(piece)
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.empty(0, self.dtype)

    def _map(self, file: Path) -> None:
        if file.stat().st_size:
            # as a plain array: a memmap's own slicing takes three times as long
            self._shards.append(np.asarray(np.memmap(file, dtype=self.dtype, mode="r")))
            self._len += len(self._shards[-1])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)


def open_split(folder: Path, split: str, meta: dict[str, Any]) -> Tokens:
    """Map the files of a split into memory."""
    files = sorted(folder.glob(f"{split}-?????.bin"))
    return Tokens(files, np.dtype(meta["dtype"]), meta["shard_tokens"])


class Shards:
    """A shards folder, opened.

    Args:
        folder: what `llmlab data pack` wrote.
        expect_fingerprint: of the tokenizer the ids shall come from, when it matters.

    Raises:
        DataError: no shards folder, one of another version, one cut short, or other ids.
    """

    def __init__(self, folder: Path | str, expect_fingerprint: str | None = None) -> None:
        self.folder = Path(folder)
        self.meta = _read_meta(self.folder)
        self.tokenizer = self.folder / "tokenizer"
        """Folder of the tokenizer that made the ids."""
        found = self.meta["tokenizer_fingerprint"]
        if expect_fingerprint is not None and found != expect_fingerprint:
            raise DataError(
                f"{self.folder} holds ids of the tokenizer {found[:12]}, but the tokenizer given "
                f"has the fingerprint {expect_fingerprint[:12]}; use {self.tokenizer}, "
                "or pack the data again with the tokenizer you want"
            )
        self._splits = {name: self._open(name) for name in ("train", "val")}

    def split(self, split: Split) -> Tokens:
        """Return the ids of a split, documents back to back, each ending with eos."""
        return self._splits[split]

    def doc_starts(self, split: Split) -> NDArray[np.int64]:
        """Return the index in `split(...)` at which each document starts."""
        return np.load(self.folder / f"{split}-docs.npy")

    def num_bytes(self, split: Split) -> int:
        """Return how many UTF-8 bytes of text a split stands for.

        bits per byte = (sum of the losses in nats over its tokens) / bytes / ln 2.
        """
        return self.meta["splits"][split]["bytes"]

    @property
    def eos_token_id(self) -> int:
        """The id every document ends with."""
        return self.meta["eos_token_id"]

    def _open(self, split: str) -> Tokens:
        tokens = open_split(self.folder, split, self.meta)
        expected = self.meta["splits"][split]["tokens"]
        if len(tokens) != expected:
            raise DataError(
                f"{self.folder} has {len(tokens)} {split} tokens where meta.json says {expected}; "
                "pack the data again"
            )
        return tokens


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / "meta.json"
    if not path.is_file():
        raise DataError(
            f"{folder} is not a shards folder (no meta.json); make one with `llmlab data pack`"
        )
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}; pack the data again") from error
    if meta.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{folder} has shards format {meta.get('format_version')}, this version reads "
            f"{FORMAT_VERSION}; pack the data again"
        )
    return meta
