"""A model cut for several processes, each with its heads and its part of every feed-forward layer.

Queries, keys, values, gate and up projection are cut by rows, so that a process has whole heads and
whole hidden units; output and down projection by columns, so that the sum over the processes is
what the whole layer gives: two sums a layer, and nothing else is exchanged before the head. The
head is cut by rows of the vocabulary: in a small model it is a fifth of all weights. Embedding,
norms and routers are the same everywhere. Not here: processes (serve/tensor_parallel.py).
Source: arXiv:1909.08053 (Megatron-LM).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import gcd
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.errors import ConfigError
from llmlab.model.build import build_model
from llmlab.model.config import ModelConfig
from llmlab.model.expert_names import joined_experts, parted_experts
from llmlab.model.language_model import LanguageModel
from llmlab.model.safetensors_files import read_tensors
from llmlab.model.transformer import Transformer
from llmlab.model.weights import model_tensors

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_BY_ROWS = {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}
_BY_COLUMNS = {"o_proj", "down_proj"}
_SUMMED = {"o_proj", "down_proj", "experts"}


@dataclass(frozen=True)
class Share:
    """What one of several processes holds of a model."""

    rank: int
    """Number of the process, from 0."""
    size: int
    """How many there are."""

    def of(self, name: str, tensor: Tensor) -> Tensor:
        """Return this share of a weight, as a view; those that are not cut come back whole."""
        layer = name.split(".")[-2]
        if layer not in _BY_ROWS | _BY_COLUMNS:
            return tensor
        dim = 0 if layer in _BY_ROWS else 1
        length = tensor.shape[dim] // self.size
        return tensor.narrow(dim, self.rank * length, length)

    def of_head(self, weight: Tensor) -> Tensor:
        """Return this share of the head (V, E): as many rows for each process, zeros last."""
        length = -(-len(weight) // self.size)
        rows = weight[self.rank * length : (self.rank + 1) * length]
        return F.pad(rows, (0, 0, 0, length - len(rows))) if len(rows) < length else rows


def check_shares(config: ModelConfig, size: int) -> None:
    """Refuse a model that does not divide among `size` processes.

    Raises:
        ConfigError: another architecture, or the name of what does not divide.
    """
    if config.is_gpt2 or config.is_recurrent:
        raise ConfigError(
            f"tensor_parallel={size}: a {config.architecture} is not cut for several processes; "
            "use tensor_parallel=1"
        )
    sizes = {
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "intermediate_size": config.intermediate_size,
    }
    if config.experts is not None:
        sizes["moe_intermediate_size"] = config.experts.moe_intermediate_size
    odd = [f"{name}={value}" for name, value in sizes.items() if value % size]
    if odd:
        most = gcd(*sizes.values())
        fitting = [str(n) for n in range(1, most + 1) if most % n == 0]
        raise ConfigError(
            f"tensor_parallel={size} does not divide {' and '.join(odd)}; use {_either(fitting)}"
        )


def load_shard(
    folder: Path, config: ModelConfig, share: Share, *, dtype: torch.dtype
) -> LanguageModel:
    """Load one share of a model folder; no more than it and one tensor is in memory.

    Args:
        folder: holds the safetensors.
        config: of the whole model.
        share: which part.
        dtype: of the weights in memory.

    Returns:
        A model on the CPU whose config counts its own heads and hidden units, and whose head is
        its own rows of the vocabulary. Alone it computes nothing of use: see `sum_shares_`.

    Raises:
        ConfigError: the model does not divide.
        ModelError: as `load_weights`.
    """
    check_shares(config, share.size)
    with torch.device("meta"):
        whole = build_model(config)
        model = build_model(_config_of(config, share)).to(dtype)
        assert isinstance(model, Transformer)
        num_rows = -(-config.vocab_size // share.size)
        model.lm_head = nn.Linear(config.hidden_size, num_rows, bias=False)
    parts: dict[str, Tensor] = {}
    places = model_tensors(folder, config, parted_experts(whole.state_dict()))
    for name, tensor in read_tensors(places):
        part = share.of_head(tensor) if name == _HEAD else share.of(name, tensor)
        parts[name] = part.to(dtype).contiguous()
    if config.tie_word_embeddings:
        parts[_HEAD] = share.of_head(parts[_EMBEDDING])
    model.load_state_dict(joined_experts(parts, model.state_dict()), strict=True, assign=True)
    return model


def sum_shares_(model: LanguageModel, sum_: Callable[[Tensor], None]) -> None:
    """Make the layers of a share give what the whole layers do, in place.

    Args:
        model: of `load_shard`.
        sum_: replaces a tensor by its sum over all processes, which call it in the same order.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if name in _SUMMED:
                setattr(module, name, Summed(child, sum_))


class Summed(nn.Module):
    """A layer of which each process has a part: the results of the parts are summed.

    Args:
        part: this process's.
        sum_: as `sum_shares_` takes it.
    """

    def __init__(self, part: nn.Module, sum_: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.part = part
        self._sum = sum_

    def forward(self, *arguments: Tensor) -> Tensor:
        """Return the sum, in the dtype of the parts."""
        out = self.part(*arguments)
        self._sum(out)
        return out


def _config_of(config: ModelConfig, share: Share) -> ModelConfig:
    n, experts = share.size, config.experts
    if experts is not None:
        experts = replace(experts, moe_intermediate_size=experts.moe_intermediate_size // n)
    return replace(
        config,
        num_attention_heads=config.num_attention_heads // n,
        num_key_value_heads=config.num_key_value_heads // n,
        intermediate_size=config.intermediate_size // n,
        experts=experts,
    )


def _either(numbers: list[str]) -> str:
    return " or ".join(filter(None, (", ".join(numbers[:-1]), numbers[-1])))
