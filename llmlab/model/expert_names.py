"""Experts in memory and on disk: one tensor a layer here, one a matrix of an expert there.

Model folders keep `experts.3.gate_proj.weight` and the like, as those on Hugging Face's hub do,
while a model computes with all experts of a layer in one tensor. Not here: the files (weights.py).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

_GATE_UP, _DOWN = ".mlp.experts.gate_up_proj", ".mlp.experts.down_proj"


def parted_experts(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with a name for each matrix of each expert, as views.

    Args:
        weights: a model's `state_dict()`; one without experts comes back as it is.
    """
    parted: dict[str, Tensor] = {}
    for name, weight in weights.items():
        prefix = name.rpartition(".")[0]
        if name.endswith(_GATE_UP):
            for expert, both in enumerate(weight.unbind()):
                gate, up = both.chunk(2)
                parted[f"{prefix}.{expert}.gate_proj.weight"] = gate
                parted[f"{prefix}.{expert}.up_proj.weight"] = up
        elif name.endswith(_DOWN):
            for expert, down in enumerate(weight.unbind()):
                parted[f"{prefix}.{expert}.down_proj.weight"] = down
        else:
            parted[name] = weight
    return parted


def joined_experts(weights: dict[str, Tensor], names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict that `parted_experts` would turn into `weights`.

    Args:
        weights: under the names on disk; the matrices of experts are taken out of it.
        names: a state dict whose names, shapes and order the result has.
    """
    return {
        name: _joined(weights, name, len(like))
        if name.endswith((_GATE_UP, _DOWN))
        else weights[name]
        for name, like in names.items()
    }


def _joined(weights: dict[str, Tensor], name: str, num_experts: int) -> Tensor:
    prefix = name.rpartition(".")[0]
    kinds = ("gate_proj", "up_proj") if name.endswith(_GATE_UP) else ("down_proj",)
    return torch.stack(
        [
            torch.cat([weights.pop(f"{prefix}.{expert}.{kind}.weight") for kind in kinds])
            for expert in range(num_experts)
        ]
    )
