"""Weights on disk: safetensors files, one or several with an index, under Hugging Face's names.

Not here: config and tokenizer (folder.py), the files themselves (safetensors_files.py). Names and
shapes are compared before any number is read, nothing is loaded by halves, and no more than the
model and one tensor is in memory.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from llmlab.errors import ModelError
from llmlab.model.config import ModelConfig
from llmlab.model.expert_names import joined_experts, parted_experts
from llmlab.model.language_model import LanguageModel
from llmlab.model.safetensors_files import (
    FLOATS,
    INDEX,
    SINGLE,
    StoredTensor,
    num_bytes,
    read_tensors,
    stored_tensors,
    write_tensors,
)

_HEAD = "lm_head.weight"


def load_weights(model: LanguageModel, folder: Path | str) -> None:
    """Fill a model with the weights of a model folder, in the model's own dtype.

    A model built under `torch.device("meta")` gets CPU tensors; where the dtype is that of the
    file they are views of the mapped file, and pages are read when first used.

    Args:
        model: built from the folder's config.
        folder: holds model.safetensors, or model.safetensors.index.json and its files.

    Raises:
        ModelError: no weights, a broken file, or tensors missing, unknown or of another shape.
    """
    state = model.state_dict()
    wanted = parted_experts(state)
    found = read_tensors(model_tensors(folder, model.config, wanted))
    if any(tensor.is_meta for tensor in wanted.values()):
        tensors = {name: tensor.to(wanted[name].dtype) for name, tensor in found}
        model.load_state_dict(joined_experts(tensors, state), strict=True, assign=True)
        return
    with torch.no_grad():
        for name, tensor in found:
            wanted[name].copy_(tensor)


def model_tensors(
    folder: Path | str, config: ModelConfig, wanted: Mapping[str, Tensor]
) -> dict[str, StoredTensor]:
    """Find the tensors of a model in its folder, without reading them.

    Args:
        folder: holds the safetensors.
        config: of the model.
        wanted: the model's `parted_experts(state_dict())`; only names and shapes are used.

    Returns:
        Where each tensor lies, in the order of `wanted`.

    Raises:
        ModelError: no weights, a broken file, or tensors missing, unknown or of another shape.
    """
    folder = Path(folder)
    found = {}
    for name, place in stored_tensors(folder).items():
        own = _own_name(name, config)
        if own is not None:
            found[own] = place
    _check_names(folder, wanted, found, tied=config.tie_word_embeddings)
    for name, tensor in wanted.items():
        _check_shape(folder, name, found[name], tensor)
    if _HEAD in found and _HEAD not in wanted:
        _check_tied(folder, found, config)
    return {name: found[name] for name in wanted}


def stored_dtype(folder: Path | str) -> torch.dtype:
    """Return the widest dtype of the numbers in a model folder.

    Raises:
        ModelError: no weights, a broken file, or no numbers of a dtype that is read.
    """
    found = {tensor.dtype for tensor in stored_tensors(Path(folder)).values()}
    known = [dtype for dtype, name in FLOATS.items() if name in found]
    if not known:
        raise ModelError(
            f"{folder} stores its weights as {', '.join(sorted(found))}; those read are "
            f"{', '.join(FLOATS.values())}"
        )
    return known[0]


def save_weights(
    weights: Mapping[str, Tensor],
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write tensors as model.safetensors, or as several files and an index when they are large.

    Args:
        weights: name to tensor.
        folder: exists; belongs to the caller.
        dtype: of the numbers written; each tensor's own when None.
        max_shard_bytes: a file grows no larger, unless one tensor alone is.
    """
    shards = _split(weights, dtype, max_shard_bytes)
    if len(shards) == 1:
        write_tensors(folder / SINGLE, weights, dtype=dtype)
        return
    places: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(folder / file, {name: weights[name] for name in names}, dtype=dtype)
        places |= dict.fromkeys(names, file)
    total = sum(num_bytes(tensor, dtype) for tensor in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _own_name(name: str, config: ModelConfig) -> str | None:
    """Return the model's name for a tensor of a file, or None for a constant in old files."""
    if name.endswith(("rotary_emb.inv_freq", ".attn.masked_bias")):
        return None
    if config.is_gpt2:
        if name.endswith(".attn.bias"):
            return None  # the causal mask
        # OpenAI's own files leave out the outer module's name.
        return name if name.startswith(("transformer.", _HEAD)) else f"transformer.{name}"
    return name


def _check_names(folder: Path, wanted: Iterable[str], found: Iterable[str], *, tied: bool) -> None:
    missing = sorted(set(wanted) - set(found))
    unknown = sorted(set(found) - set(wanted) - ({_HEAD} if tied else set()))
    if missing or unknown:
        parts = [
            f"{what} {_some(names)}"
            for what, names in (("lacks", missing), ("also has", unknown))
            if names
        ]
        raise ModelError(
            f"the weights in {folder} do not fit its config.json: the file {'; it '.join(parts)}; "
            "check architecture, num_hidden_layers and tie_word_embeddings"
        )


def _check_shape(folder: Path, name: str, place: StoredTensor, wanted: Tensor) -> None:
    if place.shape != wanted.shape:
        raise ModelError(
            f"{name} in {folder} has shape {place.shape}, config.json asks for "
            f"{tuple(wanted.shape)}; correct the sizes in config.json"
        )


def _check_tied(folder: Path, found: Mapping[str, StoredTensor], config: ModelConfig) -> None:
    name = "transformer.wte.weight" if config.is_gpt2 else "model.embed_tokens.weight"
    (_, embedding), (_, head) = read_tensors({name: found[name], _HEAD: found[_HEAD]})
    if not torch.equal(head, embedding):
        raise ModelError(
            f"{folder} holds a {_HEAD} that differs from {name}, but config.json says "
            "tie_word_embeddings=true; set it to false"
        )


def _split(
    weights: Mapping[str, Tensor], dtype: torch.dtype | None, max_shard_bytes: int
) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    room = max_shard_bytes
    for name, tensor in weights.items():
        size = num_bytes(tensor, dtype)
        if size > room and shards[-1]:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(name)
        room -= size
    return shards


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest
