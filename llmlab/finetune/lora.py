"""LoRA: beside each frozen linear layer, a trained product of two thin matrices.

    y = W x + b + scaling * B A dropout(x)        A (rank, in), B (out, rank), B starts at zero

A layer with LoRA keeps the names of the layer it stands for (`weight`, `bias`) and adds
`lora_A.weight` and `lora_B.weight`. Not here: adapter files (adapter.py), training (run.py).
Sources: arXiv:2106.09685 (LoRA), arXiv:2312.03732 (rsLoRA: scaling alpha / sqrt(rank)).
"""

import math
from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.errors import ModelError, did_you_mean
from llmlab.finetune.config import LoraConfig
from llmlab.model.gpt2 import Conv1D
from llmlab.model.language_model import LanguageModel


class LoraLinear(nn.Module):
    """A linear layer whose weight is frozen, plus its trained low-rank update.

    Args:
        layer: an `nn.Linear` (weight (out, in)) or a GPT-2 `Conv1D` (weight (in, out)); its
            parameters are taken over, not copied.
        config: rank, scaling and dropout.
    """

    def __init__(self, layer: nn.Linear | Conv1D, config: LoraConfig) -> None:
        super().__init__()
        self.weight = cast(nn.Parameter, layer.weight)
        self.bias = cast(nn.Parameter | None, layer.bias)
        self.transposed = isinstance(layer, Conv1D)
        out_size, in_size = layer.weight.T.shape if self.transposed else layer.weight.shape
        with torch.device(layer.weight.device):
            self.lora_A = nn.Linear(in_size, config.rank, bias=False)
            self.lora_B = nn.Linear(config.rank, out_size, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.scaling = config.scaling

    def initialise(self, generator: torch.Generator) -> None:
        """Start A as torch starts a linear layer, and B at zero: the update is zero."""
        start = torch.empty(self.lora_A.weight.shape)  # drawn on the CPU: same on every device
        nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
        with torch.no_grad():
            self.lora_A.weight.copy_(start)
            self.lora_B.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out); the update is computed in the dtype of A (float32)."""
        weight = self.weight.t() if self.transposed else self.weight
        y = F.linear(x, weight, self.bias)
        update = self.lora_B(self.lora_A(self.dropout(x.to(self.lora_A.weight.dtype))))
        return y + (self.scaling * update).to(y.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Linear | Conv1D:
        """Return the plain layer with the update added to its weight (in float32, in place)."""
        update = self.scaling * (self.lora_B.weight.float() @ self.lora_A.weight.float())
        update = update.t() if self.transposed else update
        self.weight.copy_(self.weight.float() + update)
        out_size, in_size = self.lora_B.out_features, self.lora_A.in_features
        with torch.device("meta"):
            if self.transposed:
                layer = Conv1D(out_size, in_size)
            else:
                layer = nn.Linear(in_size, out_size, bias=self.bias is not None)
        layer.weight = self.weight
        if self.bias is not None:
            layer.bias = self.bias
        return layer


def add_lora(model: LanguageModel, config: LoraConfig, *, seed: int = 0) -> list[str]:
    """Freeze the model and put LoRA beside its linear layers; its outputs do not change yet.

    Args:
        model: changed in place.
        config: rank, scaling, dropout, and which layers.
        seed: of the matrices A.

    Returns:
        The names of the layers, such as `model.layers.0.self_attn.q_proj`.

    Raises:
        ModelError: a name in `target_modules` fits no layer, or there is an adapter already.
    """
    names = _targets(model, config.target_modules)
    wrap_layers(model, names, config)
    generator = torch.Generator().manual_seed(seed)
    for layer in lora_layers(model).values():
        layer.initialise(generator)
    return names


def wrap_layers(model: LanguageModel, names: Iterable[str], config: LoraConfig) -> None:
    """Freeze the model and put uninitialised LoRA beside the named layers.

    Raises:
        ModelError: a name is not a linear layer of the model, or there is an adapter already.
    """
    if lora_layers(model):
        raise ModelError("the model already has an adapter; merge it first, or load the base again")
    linear = linear_layers(model)
    for name in names:
        if name not in linear:
            raise ModelError(f"the model has no linear layer {name!r}{did_you_mean(name, linear)}")
    model.requires_grad_(requires_grad=False)
    for name in names:
        _replace(model, name, LoraLinear(linear[name], config).train(model.training))


def merge_lora(model: LanguageModel) -> None:
    """Add every update to its weight and put the plain layers back; the outputs stay the same."""
    for name, layer in lora_layers(model).items():
        _replace(model, name, layer.merged())
    model.requires_grad_(requires_grad=True)


def lora_layers(model: LanguageModel) -> dict[str, LoraLinear]:
    """Return the layers with LoRA by name, in the order of the model."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoraLinear)}


def linear_layers(model: LanguageModel) -> dict[str, nn.Linear | Conv1D]:
    """Return the linear layers of the decoder by name; the head, often tied, is not one."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name != "lm_head"
    }


def _targets(model: LanguageModel, wanted: tuple[str, ...] | None) -> list[str]:
    names = list(linear_layers(model))
    if wanted is None:
        return names
    for target in wanted:
        if not any(_fits(name, target) for name in names):
            known = {name.rpartition(".")[2] for name in names}
            raise ModelError(f"target_modules: no layer {target!r}{did_you_mean(target, known)}")
    return [name for name in names if any(_fits(name, target) for target in wanted)]


def _fits(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, layer)
