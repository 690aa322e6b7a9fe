"""LoRA adapters as PEFT keeps them: adapter_config.json and adapter_model.safetensors.

Plain LoRA beside linear layers, a rank and a scaling for each; whatever else PEFT can do is refused
by name. The header of the weights' file may carry a fingerprint of the base model, which PEFT
passes over. Not here: writing (llmlab/finetune/adapter.py), the layers that use it.
Sources: arXiv:2106.09685 (LoRA), arXiv:2312.03732 (rsLoRA: scaling alpha / sqrt(rank)).
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llmlab.errors import ModelError
from llmlab.model.language_model import LanguageModel

PREFIX = "base_model.model."
"""Stands before the name of a layer in the weights' file."""

FINGERPRINT = "llmlab_base_fingerprint"
"""Key of the base model's fingerprint in the header of the weights' file."""

_SAMPLES = 64

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "alora_invocation_tokens": (),
    "arrow_config": (),
    "bias": ("none",),
    "init_lora_weights": (True, "eva", "gaussian", "orthogonal"),  # others change the base model
    "kasa_config": (),
    "layer_replication": (),
    "lora_bias": (),
    "modules_to_save": (),
    "monteclora_config": (),
    "target_parameters": (),
    "trainable_token_indices": (),
    "use_bdlora": (),
    "use_dora": (),
    "use_qalora": (),
}
"""PEFT's fields that change what is computed, and the values (besides none) that do not."""


@dataclass(frozen=True)
class AdapterLayer:
    """What an adapter adds to one linear layer: `scaling * B A`, A (rank, in), B (out, rank)."""

    rank: int
    in_size: int
    out_size: int
    scaling: float


class StoredAdapter:
    """An adapter folder, its weights not read yet.

    Args:
        folder: written by PEFT or by llmlab, or the folder of a finetuning run.

    Raises:
        ModelError: no adapter there, a broken one, or one of another kind.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = adapter_folder(folder)
        self.fields = read_fields(self.folder)
        """The contents of adapter_config.json."""
        self._path = self.folder / "adapter_model.safetensors"
        shapes, self.fingerprint = _read_header(self._path)
        self.layers = _layers(self.folder, self.fields, shapes)
        """By the name of the layer, such as `model.layers.0.self_attn.q_proj`."""

    @property
    def base_model(self) -> str:
        """Folder or name of the model it was trained on, as it says itself."""
        return str(self.fields.get("base_model_name_or_path") or "unnamed")

    def check_base(self, fingerprint: str) -> None:
        """Refuse another base model, where the adapter knows its own.

        Args:
            fingerprint: `base_fingerprint` of the base model.

        Raises:
            ModelError: it is another one.
        """
        if self.fingerprint is not None and self.fingerprint != fingerprint:
            raise ModelError(
                f"{self.folder} was trained on another base model ({self.base_model}, fingerprint "
                f"{self.fingerprint[:12]}, this model has {fingerprint[:12]}); "
                "load the model it was trained on"
            )

    def weights(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Read A (rank, in) and B (out, rank) of every layer, as they are stored.

        Raises:
            ModelError: the file changed or cannot be read.
        """
        try:
            with safe_open(self._path, framework="pt") as file:
                return {
                    name: (
                        file.get_tensor(f"{PREFIX}{name}.lora_A.weight"),
                        file.get_tensor(f"{PREFIX}{name}.lora_B.weight"),
                    )
                    for name in self.layers
                }
        except (OSError, SafetensorError) as error:
            raise _unreadable(self._path, error) from error


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


def read_fields(folder: Path) -> dict[str, Any]:
    """Return the contents of adapter_config.json.

    Raises:
        ModelError: it is not there or no JSON object.
    """
    path = adapter_folder(folder) / "adapter_config.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}; copy the adapter again") from error
    if not isinstance(fields, dict):
        raise ModelError(f"{path} holds {type(fields).__name__}, not a JSON object; copy it again")
    return fields


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


def _read_header(path: Path) -> tuple[dict[str, tuple[int, ...]], str | None]:
    """Return the shapes by name, the prefix taken off, and the fingerprint of the base model."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            keys = list(file.keys())
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in keys}
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error
    named = {key.removeprefix(PREFIX): shape for key, shape in shapes.items()}
    return named, metadata.get(FINGERPRINT)


def _unreadable(path: Path, error: Exception) -> ModelError:
    return ModelError(f"cannot read {path}: {error}; copy the adapter again")


def _layers(
    folder: Path, fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, AdapterLayer]:
    _check_kind(folder, fields)
    names = sorted({name.rpartition(".lora_")[0] for name in shapes})
    expected = {f"{name}.{part}.weight" for name in names for part in ("lora_A", "lora_B")}
    if odd := sorted(set(shapes) ^ expected):
        raise ModelError(f"{folder} is not plain LoRA on linear layers, for example {odd[0]!r}")
    if not names:
        raise ModelError(f"{folder} has no weights; copy the adapter again")
    layers = {}
    for name in names:
        down, up = shapes[f"{name}.lora_A.weight"], shapes[f"{name}.lora_B.weight"]
        if len(down) != 2 or len(up) != 2 or down[0] != up[1] or not down[0]:
            raise ModelError(
                f"{folder}: {name} has lora_A {down} and lora_B {up}, which do not fit together; "
                "copy the adapter again"
            )
        rank = _of_layer(folder, fields, name, "rank_pattern", "r")
        if down[0] != rank:
            raise ModelError(
                f"{folder}: {name} has rank {down[0]}, adapter_config.json says {rank}"
            )
        alpha = _of_layer(folder, fields, name, "alpha_pattern", "lora_alpha")
        scaling = alpha / (math.sqrt(rank) if fields.get("use_rslora") else rank)
        layers[name] = AdapterLayer(down[0], down[1], up[0], scaling)
    return layers


def _check_kind(folder: Path, fields: Mapping[str, Any]) -> None:
    if fields.get("peft_type") != "LORA":
        raise ModelError(f"{folder} has peft_type={fields.get('peft_type')!r}; only LORA is read")
    for name, neutral in _NEUTRAL.items():
        if (value := fields.get(name)) and value not in neutral:
            raise ModelError(
                f"{folder} has {name}={value!r}, which is not supported; merge it with PEFT "
                "(merge_and_unload) and use the merged model"
            )
    if missing := [name for name in ("r", "lora_alpha") if name not in fields]:
        raise ModelError(f"{folder}/adapter_config.json lacks {missing}; copy the adapter again")


def _of_layer(folder: Path, fields: Mapping[str, Any], name: str, pattern: str, field: str) -> Any:
    """Return rank or alpha of a layer: that of the first pattern that names it, or of all."""
    patterns = fields.get(pattern) or {}
    if not isinstance(patterns, dict) or not all(
        re.fullmatch(r"\^?[\w.]+", key) for key in patterns
    ):
        raise ModelError(
            f"{folder} has {pattern}={patterns!r}; name layers by their last parts, such as q_proj "
            "(regular expressions are not read)"
        )
    value = fields[field]
    for key, own in patterns.items():
        if name == key.removeprefix("^") or (key[0] != "^" and name.endswith(f".{key}")):
            value = own
            break
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        raise ModelError(f"{folder} has {field}={value!r} for {name}; it must be above 0")
    return value
