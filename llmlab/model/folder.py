"""The model folder: config.json, generation_config.json, safetensors, and the tokenizer's files.

What is written loads unchanged in `transformers.AutoModelForCausalLM`; what that writes loads here.
Not here: the tensors' files (weights.py), the tokenizer's files (llmlab/tokenizers).
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from llmlab.errors import ModelError, did_you_mean
from llmlab.model.build import build_model
from llmlab.model.config import ModelConfig
from llmlab.model.expert_names import parted_experts
from llmlab.model.language_model import LanguageModel
from llmlab.model.sharding import Share, load_shard
from llmlab.model.weights import load_weights, save_weights
from llmlab.outputs import whole_folder
from llmlab.tokenizers import Tokenizer

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

_NOT_MODELS = {
    "adapter_config.json": "is an adapter; run `llmlab merge` to fold it into its base model",
    "meta.json": "is a shards folder; pass OUT/model of `llmlab pretrain --out OUT`",
    "tokenizer.json": "is a tokenizer folder; pass OUT/model of `llmlab pretrain --out OUT`",
}


def load_model(
    folder: Path | str,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    share: Share | None = None,
) -> tuple[LanguageModel, Tokenizer]:
    """Load a model folder, ready for use (`.eval()`).

    Args:
        folder: written by `save_model` or by transformers.
        dtype: of the weights in memory: float32, bfloat16 or float16.
        device: where they shall live.
        share: of several processes that hold a part each (sharding.py); the whole model when None.

    Raises:
        ConfigError: the model does not divide into shares.
        ModelError: no such folder, no model in it, or a model that is not supported.
        TokenizerError: its tokenizer cannot be used.
    """
    folder = Path(folder)
    config = load_config(folder)
    tokenizer = Tokenizer.load(folder)
    _check_vocab(config, tokenizer)
    if share is not None:
        model = load_shard(folder, config, share, dtype=_dtype(dtype))
    else:
        with torch.device("meta"):
            model = build_model(config)
        model.to(_dtype(dtype))
        load_weights(model, folder)
    return model.to(device).eval(), tokenizer


def load_config(folder: Path | str) -> ModelConfig:
    """Read config.json, with the stop tokens that generation_config.json adds.

    Raises:
        ModelError: no such folder, no model in it, or a model that is not supported.
    """
    folder = Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(_no_model(folder))
    try:
        config = ModelConfig.from_dict(_read_json(path))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    generation = folder / "generation_config.json"
    if not generation.is_file():
        return config
    extra = _read_json(generation).get("eos_token_id")
    extra = extra if isinstance(extra, list) else [] if extra is None else [extra]
    return dataclasses.replace(config, eos_token_id=_merged(config.eos_token_ids, extra))


def save_model(
    model: LanguageModel,
    tokenizer: Tokenizer,
    folder: Path | str,
    *,
    dtype: str | torch.dtype | None = None,
    overwrite: bool = False,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write a model folder, whole or not at all.

    Special token ids are the config's where it has them, else the tokenizer's.

    Args:
        model: its parameters carry their plain names (no adapter, not the result of torch.compile).
        tokenizer: saved into the folder as well.
        folder: where the folder shall appear.
        dtype: of the numbers written; that of the weights when None.
        overwrite: replace an existing folder.
        max_shard_bytes: larger weights are split over several files.

    Raises:
        ModelError: the parameters are not those of `model.config`, or the vocabulary is too small.
        OutputError: the folder exists or cannot be written.
    """
    # Not `state_dict()`, for which FSDP would take the weights apart again.
    weights = dict(model.named_parameters(remove_duplicate=False))
    _check_vocab(model.config, tokenizer)
    _check_plain(model.config, weights)
    out_dtype = _dtype(dtype) if dtype is not None else next(iter(weights.values())).dtype
    config = _with_token_ids(model.config, tokenizer)
    content = config.to_dict() | {"torch_dtype": str(out_dtype).removeprefix("torch.")}
    with whole_folder(folder, overwrite=overwrite) as partial:
        tokenizer.save(partial)
        _write_json(partial / "config.json", content)
        _write_json(partial / "generation_config.json", _generation(config, tokenizer))
        stored = parted_experts(weights)
        save_weights(stored, partial, dtype=out_dtype, max_shard_bytes=max_shard_bytes)


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ModelError(f"dtype={dtype!r} is not supported{did_you_mean(dtype, DTYPES)}")
    return DTYPES[dtype]


def _no_model(folder: Path) -> str:
    if not folder.is_dir():
        return (
            f"no model folder {folder}; pass OUT/model of `llmlab pretrain --out OUT`, or a folder "
            "that transformers wrote"
        )
    for name, what in _NOT_MODELS.items():
        if (folder / name).is_file():
            return f"{folder} has no config.json: it {what}"
    return (
        f"{folder} has no config.json, so it is no model folder; pass OUT/model of `llmlab "
        "pretrain --out OUT`, the --out of `llmlab import gguf`, or a folder transformers wrote"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is not JSON: {error}; copy the file again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds a {type(content).__name__}, not a table; copy it again")
    return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _check_vocab(config: ModelConfig, tokenizer: Tokenizer) -> None:
    if tokenizer.vocab_size > config.vocab_size:
        raise ModelError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model only vocab_size="
            f"{config.vocab_size}; use the tokenizer the model was trained with"
        )


def _check_plain(config: ModelConfig, weights: dict[str, Any]) -> None:
    with torch.device("meta"):
        expected = build_model(config).state_dict()
    odd = sorted(set(weights) ^ set(expected))
    if odd:
        raise ModelError(
            f"the model's parameters are not those of {config.architecture}, for example {odd[0]}; "
            "merge adapters first, and save the model that torch.compile was given"
        )


def _with_token_ids(config: ModelConfig, tokenizer: Tokenizer) -> ModelConfig:
    ids = {
        name: getattr(tokenizer, name)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id")
        if getattr(config, name) is None
    }
    return dataclasses.replace(config, **ids)


def _generation(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    stops = _merged(config.eos_token_ids, sorted(tokenizer.stop_token_ids))
    return {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(stops) if isinstance(stops, tuple) else stops,
        "pad_token_id": config.pad_token_id,
    }


def _merged(first: tuple[int, ...], more: list[int]) -> int | tuple[int, ...] | None:
    ids = tuple(dict.fromkeys((*first, *more)))
    return ids if len(ids) > 1 else ids[0] if ids else None
