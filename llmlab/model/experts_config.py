"""Mixture of experts as config.json describes it: how many, how large, and in which layers.

Not here: the layer itself (experts.py). Field names are those of Qwen3-MoE. Torch-free.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmlab.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class Experts:
    """Feed-forward layers of which each token uses only a few."""

    num_experts: int
    """Experts in a layer."""
    num_experts_per_tok: int
    """Experts each token goes through: the likeliest ones."""
    moe_intermediate_size: int
    """F of one expert."""
    norm_topk_prob: bool = False
    """Whether the weights of a token's experts are scaled to a sum of 1."""
    router_aux_loss_coef: float = 0.001
    """Weight in training of the loss that keeps experts equally busy; 1 is that of equal load."""
    decoder_sparse_step: int = 1
    """Every so many-th layer has experts, the others are dense."""
    mlp_only_layers: tuple[int, ...] = ()
    """Layers, from 0, that are dense all the same."""

    def __post_init__(self) -> None:
        """Refuse sizes that make no layer.

        Raises:
            ModelError: names the field and its value.
        """
        for name in ("num_experts", "num_experts_per_tok", "moe_intermediate_size",
                     "decoder_sparse_step"):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ModelError(f"{name}={value!r} is not a positive whole number; correct it")
        if self.num_experts_per_tok > self.num_experts:
            raise ModelError(
                f"num_experts_per_tok={self.num_experts_per_tok} is more than the num_experts="
                f"{self.num_experts} there are; lower it"
            )

    def in_layer(self, layer: int) -> bool:
        """Tell whether a layer, counted from 0, has experts."""
        return layer not in self.mlp_only_layers and (layer + 1) % self.decoder_sparse_step == 0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as config.json has them."""
        return {**vars(self), "mlp_only_layers": list(self.mlp_only_layers)}


FIELDS = tuple(Experts.__dataclass_fields__)
"""The fields of config.json that describe experts."""

_DEFAULTS: dict[str, Any] = {
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
}


def read_experts(raw: Mapping[str, Any]) -> Experts:
    """Read the fields of a config.json; what it leaves out is what transformers assumes."""
    values: dict[str, Any] = dict(_DEFAULTS)
    values |= {name: raw[name] for name in FIELDS if raw.get(name) is not None}
    if raw.get("num_local_experts") is not None:  # how some files spell it
        values["num_experts"] = raw["num_local_experts"]
    values["mlp_only_layers"] = tuple(values.get("mlp_only_layers", ()))
    return Experts(**values)
