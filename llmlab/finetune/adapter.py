"""Adapters of a model to and from folders in PEFT's format.

`peft.PeftModel.from_pretrained` reads what is written here. The header of the safetensors file also
carries a fingerprint of the base model, which PEFT passes over. Not here: the layers (lora.py),
reading such a folder (llmlab/model/adapter_folder.py).
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from llmlab.errors import ModelError
from llmlab.finetune.config import LoraConfig
from llmlab.finetune.lora import linear_layers, lora_layers, wrap_layers
from llmlab.model.adapter_folder import (
    FINGERPRINT,
    PREFIX,
    StoredAdapter,
    base_fingerprint,
    read_fields,
)
from llmlab.model.language_model import LanguageModel
from llmlab.outputs import whole_folder


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
            weights[f"{PREFIX}{name}.{part}.weight"] = weight.detach().cpu().contiguous()
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
    metadata = {"format": "pt", FINGERPRINT: base_fingerprint(model)}
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
    stored = StoredAdapter(Path(folder))
    config = _config_of(stored)
    stored.check_base(base_fingerprint(model))
    wrap_layers(model, stored.layers, config)
    layers = lora_layers(model)
    for name, weights in stored.weights().items():
        for part, loaded in zip(("lora_A", "lora_B"), weights, strict=True):
            target = getattr(layers[name], part).weight
            if target.shape != loaded.shape:
                raise ModelError(
                    f"{stored.folder}: {name}.{part} is {tuple(loaded.shape)}, this model needs "
                    f"{tuple(target.shape)}; load the model the adapter was trained on "
                    f"({stored.base_model})"
                )
            with torch.no_grad():
                target.copy_(loaded)
    return config


def read_base_model(folder: Path) -> str | None:
    """Return the folder or name of the model an adapter was trained on, if it says."""
    return read_fields(folder).get("base_model_name_or_path")


def _config_of(stored: StoredAdapter) -> LoraConfig:
    fields = stored.fields
    for name in ("alpha_pattern", "rank_pattern"):
        if value := fields.get(name):
            raise ModelError(
                f"{stored.folder} has {name}={value!r}, which is not supported; merge it with PEFT "
                "(merge_and_unload) and use the merged model"
            )
    targets = fields.get("target_modules")
    return LoraConfig(
        rank=fields["r"],
        alpha=fields["lora_alpha"],
        dropout=fields.get("lora_dropout", 0.0),
        rslora=bool(fields.get("use_rslora", False)),
        target_modules=tuple(targets) if isinstance(targets, list) else None,
    )


def _sorted_header(data: bytes) -> bytes:
    """Sort the metadata, whose order safetensors leaves open: equal adapters are equal files."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors stay aligned
    return len(text).to_bytes(8, "little") + text + data[end:]


def _target_modules(names: list[str], plain: list[str]) -> list[str]:
    """Name the adapted layers: by their last part, or in full where others share that part."""
    short = {name.rpartition(".")[2] for name in names}
    ambiguous = {name.rpartition(".")[2] for name in plain} & short
    return sorted(
        {name if (last := name.rpartition(".")[2]) in ambiguous else last for name in names}
    )
