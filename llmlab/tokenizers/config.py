"""The settings of `llmlab tokenizer train`, `encode`, `decode` and `convert`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from llmlab.tokenizers.plan import SPECIAL_TOKENS, Algorithm

SplitName = Literal["gpt2", "cl100k", "llama3", "qwen2", "smollm", "o200k"]
"""Names of the ways to cut text into pre-tokens (splits.py has the expressions)."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Learn a vocabulary from text."""

    sources: Annotated[tuple[str, ...], tyro.conf.Positional]
    """What to read: files, folders, globs, `hf:OWNER/DATASET[:CONFIG][:SPLIT]`, or a built-in name
    (`stdlib`, `tinyshakespeare`, `names`)."""

    out: Path
    """Tokenizer folder to write."""

    overwrite: bool = False
    """Replace `out` when it already exists."""

    vocab_size: int = 8192
    """Tokens in all, the special ones and the bytes or characters included."""

    algorithm: Algorithm = "bpe"
    """How the vocabulary is learnt: byte-level BPE, Unigram, WordPiece, or the simple rungs of one
    token a character or a word."""

    split: SplitName = "qwen2"
    """How BPE cuts text into the pieces that merges never cross."""

    digits: Literal[1, 2, 3] | None = None
    """Digits of a number in one token of BPE at most; unset leaves it to the split."""

    lowercase: bool = False
    """Let WordPiece fold case and drop accents, as uncased BERT does."""

    min_frequency: int = 2
    """How often a pattern must be seen to become a token."""

    limit_alphabet: int | None = None
    """Characters kept at most, the most frequent ones (not BPE, which has the 256 bytes)."""

    special_tokens: tuple[str, ...] = SPECIAL_TOKENS
    """Tokens with the first ids that no text forms by itself; `<|endoftext|>` ends documents, and
    `<|im_start|>` with `<|im_end|>` brings the ChatML template."""

    limit_mb: float | None = None
    """Stop reading after this many MB (10^6 bytes of UTF-8); unset reads everything."""


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """Turn text on stdin into token ids on stdout."""

    tokenizer: Path
    """Tokenizer folder, model folder, or a tokenizer file (tokenizer.json, .tiktoken, .model)."""

    allow_special: bool = False
    """Read special tokens in the text as such; otherwise they are plain text."""

    offsets: bool = False
    """One line a token: its id, where it starts and ends in the text (characters), and the text
    there as JSON."""


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """Turn token ids on stdin (separated by spaces, commas or newlines) into text on stdout."""

    tokenizer: Path
    """Tokenizer folder, model folder, or a tokenizer file (tokenizer.json, .tiktoken, .model)."""

    skip_special_tokens: bool = False
    """Leave special tokens out of the text."""


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Bring a tokenizer from one format into another."""

    source: Annotated[Path, tyro.conf.Positional]
    """Tokenizer or model folder, tokenizer.json, a tiktoken rank file, or a SentencePiece model."""

    out: Path
    """Tokenizer folder to write, or a file that ends in `.gguf` for a vocabulary that llama.cpp
    reads."""

    overwrite: bool = False
    """Replace `out` when it already exists."""

    split: SplitName | None = None
    """How text is cut, for a rank file that none of the published ones is."""
