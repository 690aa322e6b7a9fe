"""`llmlab data pack`."""

import sys
from dataclasses import dataclass
from pathlib import Path

from llmlab.data.config import PackConfig
from llmlab.data.packing import pack as pack_sources
from llmlab.track import Progress


@dataclass(frozen=True)
class Packed:
    """What the user sees after packing."""

    documents: int
    train_tokens: int
    val_tokens: int
    bytes: int
    bytes_per_token: float
    out: Path

    def __str__(self) -> str:
        return (
            f"{self.documents:,} documents, {self.bytes / 1e6:.1f} MB: {self.train_tokens:,} "
            f"tokens to train on, {self.val_tokens:,} held out "
            f"({self.bytes_per_token:.2f} bytes a token)\n{self.out}"
        )


def pack(config: PackConfig) -> Packed:
    """Tokenize sources into a shards folder."""
    progress = Progress(sys.stderr, "data pack")
    result = pack_sources(config, progress)
    progress.close()
    return Packed(
        documents=result.num_documents,
        train_tokens=result.train_tokens,
        val_tokens=result.val_tokens,
        bytes=result.num_bytes,
        bytes_per_token=result.bytes_per_token,
        out=result.out,
    )
