"""A folder that transformers wrote, or a model of the Hugging Face hub, becomes a model folder.

Reads config.json, safetensors (one file or several) and the tokenizer; writes what `load_model`
reads, under the same names. A field, tensor or tokenizer part that is not computed here is refused
by name. Not here: fetching (hub.py), the tokenizer's files (hf_tokenizer.py).
"""

from importlib import import_module
from pathlib import Path

import torch

from llmlab.errors import ModelError
from llmlab.model.build import build_model
from llmlab.model.folder import load_config, save_model
from llmlab.model.hf_tokenizer import folder_tokenizer
from llmlab.model.weights import load_weights, stored_dtype
from llmlab.outputs import check_free


def import_hf(
    source: Path | str,
    out: Path | str,
    *,
    dtype: str = "stored",
    revision: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Turn a Hugging Face model into a model folder.

    Args:
        source: a folder that transformers wrote, or `hf:OWNER/NAME`.
        out: where the model folder shall appear.
        dtype: float32, bfloat16 or float16, of the weights written; "stored" leaves them.
        revision: of a model of the hub: a commit, tag or branch.
        overwrite: replace an existing folder.

    Returns:
        `out`.

    Raises:
        ModelError: no such model, or something in it is not supported; named.
        TokenizerError: its tokenizer cannot be used.
        MissingExtraError: `hf:` without the extra `hub`.
        OutputError: `out` exists and `overwrite` is false, or the disk is full.
    """
    out = Path(out)
    check_free(out, overwrite=overwrite)
    folder = source_folder(str(source), revision)
    config = load_config(folder)
    tokenizer = folder_tokenizer(folder)
    with torch.device("meta"):
        model = build_model(config)
    # In the dtype of the file the weights are views of it, and are converted one at a time.
    stored = stored_dtype(folder)
    load_weights(model.to(stored), folder)
    written = stored if dtype == "stored" else dtype
    save_model(model, tokenizer, out, dtype=written, overwrite=overwrite)
    return out


def source_folder(source: str, revision: str | None = None) -> Path:
    """Return the folder of a source; a model of the hub is fetched into the hub's cache.

    Args:
        source: a folder, or `hf:OWNER/NAME`, whose folder is named after the commit.
        revision: of a model of the hub: a commit, tag or branch; the newest commit when None.

    Raises:
        ModelError: no such model on the hub, or a source of another kind.
        MissingExtraError: `hf:` without the extra `hub`.
    """
    if source.startswith("hf:"):
        return import_module("llmlab.model.hub").fetch_model(source, revision)
    if revision is not None:
        raise ModelError(
            f"revision={revision!r} is for models of the hub, and {source} is a folder; leave it "
            "out, or write hf:OWNER/NAME"
        )
    if source.endswith(".gguf"):
        raise ModelError(f"{source} is a GGUF file; run `llmlab import gguf {source}`")
    return Path(source)
