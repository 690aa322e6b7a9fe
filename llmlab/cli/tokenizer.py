"""`llmlab tokenizer train`, `encode`, `decode` and `convert`."""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llmlab.errors import ConfigError, DataError
from llmlab.outputs import check_free, whole_folder
from llmlab.tokenizers import Tokenizer
from llmlab.tokenizers.config import ConvertConfig, DecodeConfig, EncodeConfig, TrainConfig
from llmlab.track import OnProgress, Progress


@dataclass(frozen=True)
class Trained:
    """What the user sees after training a tokenizer."""

    vocab_size: int
    requested_vocab_size: int
    documents: int
    bytes: int
    seconds: float
    fingerprint: str
    out: Path

    def __str__(self) -> str:
        text = (
            f"{self.vocab_size:,} tokens from {self.documents:,} documents, "
            f"{self.bytes / 1e6:.1f} MB, in {self.seconds:.1f} s\n"
        )
        if self.vocab_size < self.requested_vocab_size:
            text += (
                f"{self.requested_vocab_size:,} were asked for: the text has no more patterns that "
                "occur often enough; give more text for more\n"
            )
        return f"{text}{self.out}"


@dataclass(frozen=True)
class Encoded:
    """The ids of the text on stdin."""

    ids: list[int]

    def __str__(self) -> str:
        return " ".join(map(str, self.ids))


@dataclass(frozen=True)
class EncodedWithOffsets:
    """The ids of the text on stdin, and the characters each stands for."""

    ids: list[int]
    offsets: list[list[int]]
    texts: list[str]

    def __str__(self) -> str:
        rows = zip(self.ids, self.offsets, self.texts, strict=True)
        return "\n".join(
            f"{token}\t{start}\t{end}\t{json.dumps(text, ensure_ascii=False)}"
            for token, (start, end), text in rows
        )


@dataclass(frozen=True)
class Converted:
    """What the user sees after a conversion."""

    vocab_size: int
    fingerprint: str
    out: Path

    def __str__(self) -> str:
        return f"{self.vocab_size:,} tokens\n{self.out}"


@dataclass(frozen=True)
class Decoded:
    """The text of the ids on stdin."""

    text: str

    def __str__(self) -> str:
        # Printing ends the line, so a text that ends with a newline comes out as it was.
        return self.text.removesuffix("\n")


def train(config: TrainConfig) -> Trained:
    """Learn a vocabulary from sources and write a tokenizer folder."""
    check_free(config.out, overwrite=config.overwrite)
    progress = Progress(sys.stderr, "tokenizer train")
    texts = _Texts(config, progress)
    start_s = time.monotonic()
    tokenizer = Tokenizer.train(
        texts,
        vocab_size=config.vocab_size,
        algorithm=config.algorithm,
        split=config.split,
        digits=config.digits,
        lowercase=config.lowercase,
        min_frequency=config.min_frequency,
        limit_alphabet=config.limit_alphabet,
        special_tokens=config.special_tokens,
        on_progress=progress,
    )
    progress.close()
    with whole_folder(config.out, overwrite=config.overwrite) as partial:
        tokenizer.save(partial)
    return Trained(
        vocab_size=tokenizer.vocab_size,
        requested_vocab_size=config.vocab_size,
        documents=texts.documents,
        bytes=texts.bytes,
        seconds=round(time.monotonic() - start_s, 3),
        fingerprint=tokenizer.fingerprint,
        out=config.out,
    )


def encode(config: EncodeConfig) -> Encoded | EncodedWithOffsets:
    """Turn UTF-8 text on stdin into ids."""
    tokenizer = Tokenizer.load(config.tokenizer)
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"stdin is not UTF-8 (byte {error.start}); convert it first, as with iconv"
        ) from error
    if not config.offsets:
        return Encoded(tokenizer.encode(text, allow_special=config.allow_special))
    ids, offsets = tokenizer.encode_with_offsets(text, allow_special=config.allow_special)
    return EncodedWithOffsets(
        ids.tolist(), offsets.tolist(), [text[start:end] for start, end in offsets.tolist()]
    )


def decode(config: DecodeConfig) -> Decoded:
    """Turn ids on stdin into text."""
    tokenizer = Tokenizer.load(config.tokenizer)
    ids = []
    for word in sys.stdin.read().replace(",", " ").split():
        if not (word.isascii() and word.isdigit() and int(word) < tokenizer.vocab_size):
            raise DataError(
                f"{word!r} on stdin is not a token id; ids are whole numbers from 0 to "
                f"{tokenizer.vocab_size - 1}"
            )
        ids.append(int(word))
    return Decoded(tokenizer.decode(ids, skip_special_tokens=config.skip_special_tokens))


def convert(config: ConvertConfig) -> Converted:
    """Read a tokenizer in any format and write a folder or a GGUF vocabulary."""
    from llmlab.tokenizers.files.gguf_vocab import write_vocab_gguf

    check_free(config.out, overwrite=config.overwrite)
    tokenizer = Tokenizer.load(config.source, split=config.split)
    if config.out.suffix == ".gguf":
        write_vocab_gguf(tokenizer, config.out)
    else:
        with whole_folder(config.out, overwrite=config.overwrite) as partial:
            tokenizer.save(partial)
    return Converted(tokenizer.vocab_size, tokenizer.fingerprint, config.out)


class _Texts:
    """The texts of the sources, counted while they are read."""

    def __init__(self, config: TrainConfig, on_progress: OnProgress) -> None:
        if not config.sources:
            raise ConfigError("no SOURCE given; name files, folders or a built-in such as stdlib")
        if config.limit_mb is not None and config.limit_mb <= 0:
            raise ConfigError(f"limit_mb={config.limit_mb} is not positive; leave it out for all")
        self._config = config
        self._on_progress = on_progress
        self.documents = 0
        self.bytes = 0

    def __iter__(self) -> Iterator[str]:
        from llmlab.data import iter_documents

        limit = self._config.limit_mb
        for document in iter_documents(self._config.sources, on_progress=self._on_progress):
            self.documents += 1
            self.bytes += len(document.text.encode("utf-8", "replace"))
            yield document.text
            if limit is not None and self.bytes >= limit * 1e6:
                break
