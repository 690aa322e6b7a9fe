"""Turn documents into a shards folder.

Each document is tokenized, ends with eos, and goes to `val` when a hash of its text says so:
the choice depends on nothing else, and copies of a text stay on one side. When the hash leaves a
side empty (few documents), the end of the longest document is held out instead, and copies of it
lose theirs. What the sides still share is measured (contamination.py) and written into meta.json.
Not here: reading sources (documents.py), the files (shards.py).
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from llmlab.data.config import PackConfig
from llmlab.data.contamination import Overlap, find_overlap, ngram_tokens
from llmlab.data.documents import iter_documents
from llmlab.data.encoding import encode_documents
from llmlab.data.shards import FORMAT_VERSION, SplitWriter, open_split, token_dtype
from llmlab.errors import ConfigError, DataError
from llmlab.outputs import check_free, whole_file, whole_folder
from llmlab.tokenizers import Tokenizer
from llmlab.track import OnProgress, silent


@dataclass(frozen=True, kw_only=True)
class PackResult:
    """What `pack` wrote."""

    out: Path
    """The shards folder."""

    num_documents: int
    """Documents read."""

    train_tokens: int
    """Token ids to train on, one eos a document included."""

    val_tokens: int
    """Token ids held out."""

    num_bytes: int
    """UTF-8 bytes of text, both splits."""

    bytes_per_token: float
    """UTF-8 bytes a token."""

    overlap: Overlap
    """What the validation split shares with the training split."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A document, or one end of it, and the split it goes to."""

    split: str
    data: bytes


@dataclass(slots=True)
class _Source:
    """Running count and hash of one source."""

    name: str
    documents: int
    num_bytes: int
    digest: Any

    def row(self) -> dict[str, Any]:
        return {
            "source": self.name,
            "documents": self.documents,
            "bytes": self.num_bytes,
            "sha256": self.digest.hexdigest(),
        }


def pack(config: PackConfig, on_progress: OnProgress = silent) -> PackResult:
    """Tokenize the sources into `config.out`, never holding more than a few documents.

    Raises:
        ConfigError: a field has an unusable value.
        DataError: a source cannot be used, or the corpus is too small to hold anything out.
        TokenizerError: the tokenizer folder cannot be used.
        OutputError: `out` exists or cannot be written.
    """
    _check(config)
    check_free(config.out, overwrite=config.overwrite)
    tokenizer = checked_tokenizer(config.tokenizer)
    with whole_folder(config.out, overwrite=config.overwrite) as folder:
        run = Writing(config, tokenizer, folder, on_progress)
        meta = run.write(tail_of=None)
        if config.val_fraction and not all(s["documents"] for s in meta["splits"].values()):
            on_progress({"note": "few documents: the end of the longest one is held out"})
            meta = run.write(tail_of=run.longest)
        overlap = run.finish(meta)
    train, val = meta["splits"]["train"], meta["splits"]["val"]
    num_bytes = train["bytes"] + val["bytes"]
    return PackResult(
        out=config.out,
        num_documents=sum(source["documents"] for source in meta["sources"]),
        train_tokens=train["tokens"],
        val_tokens=val["tokens"],
        num_bytes=num_bytes,
        bytes_per_token=num_bytes / (train["tokens"] + val["tokens"]),
        overlap=overlap,
    )


def checked_tokenizer(folder: Path) -> Tokenizer:
    """Load a tokenizer that can end a document.

    Raises:
        DataError: it has no end-of-text token.
        TokenizerError: the folder cannot be used.
    """
    tokenizer = Tokenizer.load(folder)
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"the tokenizer {folder} has no end-of-text token (eos_token), which ends every "
            "document; set eos_token in its tokenizer_config.json"
        )
    return tokenizer


def is_held_out(data: bytes, fraction: float) -> bool:
    """Tell whether a document goes to validation: its SHA-256, as a number in [0, 1), decides."""
    number = int.from_bytes(hashlib.sha256(data).digest()[:8], "big")
    return number < fraction * 2**64


def cut_tail(data: bytes, fraction: float) -> tuple[bytes, bytes]:
    """Cut about `fraction` of a document off its end, after a line end if there is one near.

    Raises:
        DataError: the document is too short for both parts to hold something.
    """
    text = data.decode()
    at = min(int(len(text) * (1 - fraction)), len(text) - 1)
    line_end = text.find("\n", at, at + 1000) + 1
    if 0 < line_end < len(text):
        at = line_end
    if at < 1:
        raise DataError(
            f"the corpus is one document of {len(text)} characters, too short to hold some of it "
            "out; add text or use --val-fraction 0"
        )
    return text[:at].encode(), text[at:].encode()


def _check(config: PackConfig) -> None:
    if not config.sources:
        raise ConfigError("no sources given; name a file, a folder, or the built-in 'stdlib'")
    if not 0 <= config.val_fraction <= 0.5:
        raise ConfigError(f"val_fraction={config.val_fraction} is not between 0 and 0.5; try 0.02")
    if config.shard_tokens < 1:
        raise ConfigError(f"shard_tokens={config.shard_tokens} is below 1; try 134217728")
    if config.num_threads is not None and config.num_threads < 1:
        raise ConfigError(f"num_threads={config.num_threads} is below 1; leave it unset or use 1")


class Writing:
    """The two splits in the making: reads the sources once, or twice when nothing was held out.

    Args:
        config: what to read; its `out` plays no part here.
        tokenizer: has an eos.
        folder: to write into.
        on_progress: gets counts, and notes.
        on_read: called for each document read; what it raises ends the writing.
    """

    def __init__(
        self,
        config: PackConfig,
        tokenizer: Tokenizer,
        folder: Path,
        on_progress: OnProgress,
        on_read: Callable[[], None] | None = None,
    ) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._folder = folder
        self._on_progress = on_progress
        self._on_read = on_read
        self._sources: list[_Source] = []
        self._longest_bytes, self._longest_digest = -1, b""
        self.longest = 0

    def write(
        self,
        tail_of: int | None = None,
        done: Mapping[str, Mapping[str, int]] | None = None,
        on_document: Callable[[dict[str, SplitWriter]], None] | None = None,
    ) -> dict[str, Any]:
        """Write both splits and return what meta.json says of them.

        Args:
            tail_of: number of the one document to cut, if the hash holds nothing out.
            done: counts of each split to go on from; their documents are read past.
            on_document: gets the writers after each document.
        """
        config, tokenizer = self._config, self._tokenizer
        dtype = token_dtype(tokenizer.vocab_size)
        splits = {
            name: SplitWriter(
                self._folder, name, dtype, config.shard_tokens, done[name] if done else None
            )
            for name in ("train", "val")
        }
        num_done = sum(counts["documents"] for counts in done.values()) if done else 0
        eos = np.array([tokenizer.eos_token_id], dtype)
        with splits["train"], splits["val"]:
            parts = islice(self._parts(tail_of), num_done, None)
            keyed = ((part, part.data.decode()) for part in parts)
            for part, ids in encode_documents(keyed, tokenizer, config.num_threads):
                splits[part.split].add(np.concatenate([ids, eos]), len(part.data))
                self._report(splits)
                if on_document:
                    on_document(splits)
        return {
            "format_version": FORMAT_VERSION,
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "eos_token_id": tokenizer.eos_token_id,
            "dtype": dtype.str,
            "shard_tokens": config.shard_tokens,
            "val_fraction": config.val_fraction,
            "held_out": "documents" if tail_of is None else "tail of the longest document",
            "splits": {name: writer.counts for name, writer in splits.items()},
            "sources": [source.row() for source in self._sources],
        }

    def finish(self, meta: dict[str, Any]) -> Overlap:
        """Compare the splits, warn of what they share, and complete the folder: meta.json is last.

        Args:
            meta: of `write`.
        """
        overlap = self._overlap(meta)
        self._tokenizer.save(self._folder / "tokenizer")
        text = json.dumps({**meta, "overlap": asdict(overlap)}, indent=2) + "\n"
        with whole_file(self._folder / "meta.json") as path:
            path.write_text(text, encoding="utf-8")
        return overlap

    def _overlap(self, meta: dict[str, Any]) -> Overlap:
        train, val = (open_split(self._folder, name, meta) for name in ("train", "val"))
        num_bytes = sum(split["bytes"] for split in meta["splits"].values())
        found = find_overlap(
            train,
            val,
            np.load(self._folder / "val-docs.npy"),
            ngram=ngram_tokens(num_bytes / (len(train) + len(val))),
        )
        if found.note:
            self._on_progress({"note": found.note})
        return found

    def _parts(self, tail_of: int | None) -> Iterator[_Part]:
        fraction = self._config.val_fraction
        for number, data in enumerate(self._documents()):
            if tail_of is None:
                split = "val" if is_held_out(data, fraction) else "train"
                yield _Part(split, data)
            elif number == tail_of:
                head, tail = cut_tail(data, fraction)
                yield _Part("train", head)
                yield _Part("val", tail)
            elif hashlib.sha256(data).digest() == self._longest_digest:
                yield _Part("train", cut_tail(data, fraction)[0])
            else:
                yield _Part("train", data)

    def _documents(self) -> Iterator[bytes]:
        self._sources = []
        number = 0
        for name in self._config.sources:
            source = _Source(name, 0, 0, hashlib.sha256())
            self._sources.append(source)
            for document in iter_documents([name], on_progress=self._on_progress):
                if self._on_read:
                    self._on_read()
                data = document.text.encode("utf-8", errors="replace")
                source.documents += 1
                source.num_bytes += len(data)
                source.digest.update(len(data).to_bytes(8, "big") + data)
                if len(data) > self._longest_bytes:
                    self.longest, self._longest_bytes = number, len(data)
                    self._longest_digest = hashlib.sha256(data).digest()
                number += 1
                yield data

    def _report(self, splits: dict[str, SplitWriter]) -> None:
        counts = [writer.counts for writer in splits.values()]
        self._on_progress(
            {
                "documents": sum(count["documents"] for count in counts),
                "tokens": sum(count["tokens"] for count in counts),
                "MB": round(sum(count["bytes"] for count in counts) / 1e6, 1),
            }
        )
