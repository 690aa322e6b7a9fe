"""Flags of `llmlab rag index` and `llmlab rag ask`. Imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

Mode = Literal["hybrid", "bm25", "dense"]
"""How passages are found: words (bm25), meaning (dense), or both fused by rank (hybrid)."""


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """Index folders of documents; run it again to bring the index up to date."""

    folders: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders with txt, md, html, py and pdf files."""

    out: Path
    """Index folder to create or update."""

    embedder: str | None = None
    """Sentence-transformers folder or OWNER/NAME; default: the installed all-MiniLM-L6-v2."""

    chunk_tokens: int = 240
    """Longest passage, in tokens of the embedder; all-MiniLM-L6-v2 reads 254."""

    overlap_tokens: int = 32
    """Tokens that a passage repeats from the end of the one before it, at most."""

    overwrite: bool = False
    """Build the index anew; the old one stays until the new one is complete."""


@dataclass(frozen=True, kw_only=True)
class AskConfig:
    """Answer a question from an index through an OpenAI-style server, with checked citations."""

    question: Annotated[tuple[str, ...], tyro.conf.Positional]
    """The question, quoted or not."""

    index: Path
    """Index folder written by `llmlab rag index`."""

    base_url: str
    """Server address, such as http://127.0.0.1:8000/v1."""

    model: str | None = None
    """Model name; default: the first one the server lists."""

    k: int = 4
    """Passages shown to the model, at most."""

    mode: Mode = "hybrid"
    """How passages are found."""

    max_tokens: int = 256
    """Longest answer, in tokens of the model."""

    temperature: float = 0.0
    """Sampling temperature; 0 takes the likeliest token."""

    context_len: int = 2048
    """Context of the model in tokens, where the server does not tell."""

    timeout_s: float = 120.0
    """Seconds without a byte from the server after which the question fails."""

    api_key_file: Path | None = None
    """File whose first line is sent as the bearer token."""
