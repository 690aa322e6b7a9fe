"""Adapter folders in PEFT's format: adapter_config.json and adapter_model.safetensors.

`peft.PeftModel.from_pretrained` reads what is written here, and what PEFT writes is read here, as
far as it is plain LoRA. The header of the safetensors file also carries a fingerprint of the base
model, which PEFT passes over. Not here: the layers (lora.py).
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from llmlab.errors import ModelError
from llmlab.finetune.config import LoraConfig
from llmlab.finetune.lora import linear_layers, lora_layers, wrap_layers
from llmlab.model.language_model import LanguageModel
from llmlab.outputs import whole_folder

_PREFIX = "base_model.model."
_FINGERPRINT = "llmlab_base_fingerprint"
_SAMPLES = 64

_UNSUPPORTED = {
    "alpha_pattern": {},
    "bias": "none",
    "lora_bias": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "target_parameters": None,
    "trainable_token_indices": None,
    "use_dora": False,
}
"""PEFT's fields that change what is computed, and the value at which they do not."""


def save_adapter(
    model: LanguageModel,
    config: LoraConfig,
    folder: Path | str,
    *,
    base_model: str,
    overwrite: bool = False,
) -> None:
    """Write the LoRA of a model as an adapter folder.

    Args:
        model: with the adapter, not merged.
        config: the one it was added with.
        folder: where it shall appear.
        base_model: folder or name of the model it belongs to.
        overwrite: replace an existing folder.

    Raises:
        ModelError: the model has no adapter.
        OutputError: the folder exists or cannot be written.
    """
    with whole_folder(folder, overwrite=overwrite) as partial:
        write_adapter(model, config, partial, base_model=base_model)


def write_adapter(
    model: LanguageModel, config: LoraConfig, folder: Path, *, base_model: str
) -> None:
    """Write the two files into a folder that is there already."""
    layers = lora_layers(model)
    if not layers:
        raise ModelError("the model has no adapter to save; call add_lora first")
    weights: dict[str, Tensor] = {}
    for name, layer in layers.items():
        for part in ("lora_A", "lora_B"):
            weight = getattr(layer, part).weight
            weights[f"{_PREFIX}{name}.{part}.weight"] = weight.detach().cpu().contiguous()
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.rslora,
        "target_modules": _target_modules(list(layers), list(linear_layers(model))),
        "fan_in_fan_out": any(layer.transposed for layer in layers.values()),
        "bias": "none",
        "modules_to_save": None,
        "inference_mode": True,
    }
    text = json.dumps(fields, indent=2) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    metadata = {"format": "pt", _FINGERPRINT: base_fingerprint(model)}
    data = _sorted_header(save(weights, metadata=metadata))
    (folder / "adapter_model.safetensors").write_bytes(data)


def load_adapter(model: LanguageModel, folder: Path | str) -> LoraConfig:
    """Put a saved adapter onto its base model.

    Args:
        model: the base model, changed in place; its weights are frozen.
        folder: written by `save_adapter` or by PEFT, or the folder of a finetuning run.

    Raises:
        ModelError: no adapter there, one of another kind, or one for another base model.
    """
    folder = adapter_folder(Path(folder))
    config = read_adapter_config(folder)
    weights, fingerprint = _read_weights(folder)
    if fingerprint is not None and fingerprint != base_fingerprint(model):
        raise ModelError(
            f"{folder} was trained on another base model ({_base_of(folder)}, fingerprint "
            f"{fingerprint[:12]}, this model has {base_fingerprint(model)[:12]}); "
            "load the model it was trained on"
        )
    names = sorted({name.rpartition(".lora_")[0] for name in weights})
    _check_names(folder, weights, names, config.rank)
    wrap_layers(model, names, config)
    for name, layer in lora_layers(model).items():
        for part in ("lora_A", "lora_B"):
            target, loaded = getattr(layer, part).weight, weights[f"{name}.{part}.weight"]
            if target.shape != loaded.shape:
                raise ModelError(
                    f"{folder}: {name}.{part} is {tuple(loaded.shape)}, this model needs "
                    f"{tuple(target.shape)}; load the model the adapter was trained on "
                    f"({_base_of(folder)})"
                )
            with torch.no_grad():
                target.copy_(loaded)
    return config


def adapter_folder(folder: Path) -> Path:
    """Return the adapter folder itself when given that of a finetuning run.

    Raises:
        ModelError: there is no adapter in either.
    """
    for place in (folder, folder / "adapter"):
        if (place / "adapter_config.json").is_file():
            return place
    raise ModelError(
        f"{folder} is not an adapter folder (no adapter_config.json); "
        "pass the one that `llmlab finetune --method lora` or PEFT wrote"
    )


def read_adapter_config(folder: Path) -> LoraConfig:
    """Read adapter_config.json.

    Raises:
        ModelError: it is missing, or describes something other than plain LoRA.
    """
    fields = _fields(folder)
    if fields.get("peft_type") != "LORA":
        raise ModelError(f"{folder} has peft_type={fields.get('peft_type')!r}; only LORA is read")
    for name, neutral in _UNSUPPORTED.items():
        if (value := fields.get(name)) and value != neutral:
            raise ModelError(
                f"{folder} has {name}={value!r}, which is not supported; merge it with PEFT "
                "(merge_and_unload) and use the merged model"
            )
    if missing := [name for name in ("r", "lora_alpha") if name not in fields]:
        raise ModelError(f"{folder}/adapter_config.json lacks {missing}; copy the adapter again")
    targets = fields.get("target_modules")
    return LoraConfig(
        rank=fields["r"],
        alpha=fields["lora_alpha"],
        dropout=fields.get("lora_dropout", 0.0),
        rslora=bool(fields.get("use_rslora", False)),
        target_modules=tuple(targets) if isinstance(targets, list) else None,
    )


def read_base_model(folder: Path) -> str | None:
    """Return the folder or name of the model an adapter was trained on, if it says."""
    return _fields(folder).get("base_model_name_or_path")


def base_fingerprint(model: LanguageModel) -> str:
    """Return a SHA-256 that tells base models apart, whatever dtype they are loaded in.

    It covers name, shape and 64 evenly spaced numbers of every tensor but those of an adapter,
    rounded to bfloat16: a second for gigabytes, and any training step on the base changes it.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if ".lora_" in name:
            continue
        flat = tensor.detach().flatten()
        at = torch.linspace(0, len(flat) - 1, _SAMPLES, dtype=torch.float64).long().unique()
        sample = flat[at.to(flat.device)].to(torch.bfloat16).cpu().view(torch.int16)
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()


def _fields(folder: Path) -> dict[str, Any]:
    path = adapter_folder(folder) / "adapter_config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}; copy the adapter again") from error


def _base_of(folder: Path) -> str:
    return str(read_base_model(folder) or "unnamed")


def _read_weights(folder: Path) -> tuple[dict[str, Tensor], str | None]:
    path = folder / "adapter_model.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {key.removeprefix(_PREFIX): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot read {path}: {error}; copy the adapter again") from error
    return weights, metadata.get(_FINGERPRINT)


def _sorted_header(data: bytes) -> bytes:
    """Sort the metadata, whose order safetensors leaves open: equal adapters are equal files."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors stay aligned
    return len(text).to_bytes(8, "little") + text + data[end:]


def _check_names(folder: Path, weights: dict[str, Tensor], names: list[str], rank: int) -> None:
    expected = {f"{name}.{part}.weight" for name in names for part in ("lora_A", "lora_B")}
    if odd := sorted(set(weights) ^ expected):
        raise ModelError(f"{folder} is not plain LoRA on linear layers, for example {odd[0]!r}")
    for name in names:
        if (found := weights[f"{name}.lora_A.weight"].shape[0]) != rank:
            raise ModelError(f"{folder}: {name} has rank {found}, adapter_config.json says {rank}")


def _target_modules(names: list[str], plain: list[str]) -> list[str]:
    """Name the adapted layers: by their last part, or in full where others share that part."""
    short = {name.rpartition(".")[2] for name in names}
    ambiguous = {name.rpartition(".")[2] for name in plain} & short
    return sorted(
        {name if (last := name.rpartition(".")[2]) in ambiguous else last for name in names}
    )
