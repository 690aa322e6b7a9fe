"""From a base model and an adapter to one model folder that needs no adapter."""

import json
from pathlib import Path

from llmlab.errors import ModelError
from llmlab.finetune.adapter import load_adapter, read_base_model
from llmlab.finetune.config import MergeConfig
from llmlab.finetune.lora import merge_lora
from llmlab.model import load_model, save_model
from llmlab.outputs import check_free


def merge(config: MergeConfig) -> Path:
    """Write the base model with the adapter's update added to its weights.

    The sum is made in float32 and rounded once, to the dtype written.

    Returns:
        The model folder.

    Raises:
        ModelError: there is no adapter or no base model, or they do not belong together.
        OutputError: `out` exists or cannot be written.
    """
    check_free(config.out, overwrite=config.overwrite)
    base = config.model or _base_model(config.adapter)
    model, tokenizer = load_model(base)
    load_adapter(model, config.adapter)
    merge_lora(model)
    dtype = config.dtype or _stored_dtype(base)
    save_model(model, tokenizer, config.out, dtype=dtype, overwrite=config.overwrite)
    return config.out


def _base_model(adapter: Path) -> Path:
    name = read_base_model(adapter)
    if name is None or not Path(name).is_dir():
        raise ModelError(
            f"{adapter} names {name!r} as its base model, which is no folder here; "
            "pass the model folder with --model"
        )
    return Path(name)


def _stored_dtype(folder: Path) -> str:
    """The dtype a model folder says its weights have (`dtype`, in older files `torch_dtype`)."""
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return content.get("dtype") or content.get("torch_dtype") or "float32"
