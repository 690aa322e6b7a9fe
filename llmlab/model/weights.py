"""Weights on disk: safetensors files, one or several with an index, under Hugging Face's names.

Not here: config and tokenizer (folder.py). Names and shapes are compared before any number is
read, and nothing is loaded by halves. Format: https://github.com/huggingface/safetensors.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llmlab.errors import ModelError
from llmlab.model.config import ModelConfig
from llmlab.model.language_model import LanguageModel

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
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
    folder = Path(folder)
    wanted = model.state_dict()
    found = _places(folder, model.config)
    _check_names(folder, wanted, found, tied=model.config.tie_word_embeddings)
    tensors = {}
    for name, tensor in _read(found):
        if name in wanted:
            _check_shape(folder, name, tensor, wanted[name])
            tensors[name] = tensor.to(wanted[name].dtype)
        else:
            _check_tied(folder, tensor, tensors, model)
    is_meta = any(tensor.is_meta for tensor in wanted.values())
    model.load_state_dict(tensors, strict=True, assign=is_meta)


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
        _write(weights, shards[0], folder / _SINGLE, dtype)
        return
    places: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write(weights, names, folder / file, dtype)
        places |= dict.fromkeys(names, file)
    total = sum(_num_bytes(tensor, dtype) for tensor in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _places(folder: Path, config: ModelConfig) -> dict[str, tuple[Path, str]]:
    """Return for each tensor, under the model's name for it, its file and its name there."""
    if (folder / _SINGLE).is_file():
        files = [folder / _SINGLE]
    elif (folder / _INDEX).is_file():
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        files = [folder / file for file in sorted(set(index["weight_map"].values()))]
    else:
        raise ModelError(_no_weights(folder))
    places = {}
    for path in files:
        if not path.is_file():
            raise ModelError(f"{path} is missing though {_INDEX} lists it; copy it again")
        for name in _names_in(path):
            own = _own_name(name, config)
            if own is not None:
                places[own] = (path, name)
    return places


def _names_in(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise ModelError(
            f"{path} is not a whole safetensors file ({error}); copy it again"
        ) from error


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


def _read(places: Mapping[str, tuple[Path, str]]) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor, file by file, the head last."""
    for path in sorted({path for path, _ in places.values()}):
        with safe_open(path, framework="pt", device="cpu") as file:
            for own, (place, name) in places.items():
                if place == path and own != _HEAD:
                    yield own, file.get_tensor(name)
    if _HEAD in places:
        path, name = places[_HEAD]
        with safe_open(path, framework="pt", device="cpu") as file:
            yield _HEAD, file.get_tensor(name)


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


def _check_shape(folder: Path, name: str, tensor: Tensor, wanted: Tensor) -> None:
    if tensor.shape != wanted.shape:
        raise ModelError(
            f"{name} in {folder} has shape {tuple(tensor.shape)}, config.json asks for "
            f"{tuple(wanted.shape)}; correct the sizes in config.json"
        )


def _check_tied(
    folder: Path, head: Tensor, tensors: Mapping[str, Tensor], model: LanguageModel
) -> None:
    name = "transformer.wte.weight" if model.config.is_gpt2 else "model.embed_tokens.weight"
    if not torch.equal(head.to(tensors[name].dtype), tensors[name]):
        raise ModelError(
            f"{folder} holds a {_HEAD} that differs from {name}, but config.json says "
            "tie_word_embeddings=true; set it to false"
        )


def _no_weights(folder: Path) -> str:
    for pattern in ("pytorch_model*.bin", "*.gguf", "*.pth"):
        other = sorted(folder.glob(pattern))
        if other:
            way = (
                f"run `llmlab import gguf {other[0]}`"
                if other[0].suffix == ".gguf"
                else "save it with safe_serialization=True in transformers"
            )
            return f"{folder} has no {_SINGLE}, only {other[0].name}; {way}"
    return f"{folder} has no {_SINGLE} or {_INDEX}; copy the whole model folder"


def _split(
    weights: Mapping[str, Tensor], dtype: torch.dtype | None, max_shard_bytes: int
) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    room = max_shard_bytes
    for name, tensor in weights.items():
        size = _num_bytes(tensor, dtype)
        if size > room and shards[-1]:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(name)
        room -= size
    return shards


def _write(
    weights: Mapping[str, Tensor], names: Iterable[str], path: Path, dtype: torch.dtype | None
) -> None:
    tensors = {
        name: weights[name].detach().to("cpu", dtype or weights[name].dtype).contiguous()
        for name in names
    }
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(mode)  # safetensors keeps the file to its owner; a server may be another user


def _num_bytes(tensor: Tensor, dtype: torch.dtype | None) -> int:
    return tensor.numel() * (dtype or tensor.dtype).itemsize


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest
