"""Adapters in memory: places of one size, filled and filled again, and the layers that use them.

    y = W x + scaling * B A x         A and B are those of the row's own adapter, if it has one

Every linear layer of the decoder has its places, (L, R, in) and (L, out, R), which never move: a
recorded step (tapes.py) goes on to be right when another adapter is loaded. What a row has is read
from tensors as well. Not here: names, limits, who uses what (adapters.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from llmlab.errors import ConfigError, ModelError
from llmlab.kernels.lora import add_lora_
from llmlab.model import LanguageModel, ModelConfig
from llmlab.model.adapter_folder import StoredAdapter
from llmlab.model.transformer import MLP, Attention
from llmlab.serve.memory import lazy_zeros


class LoraRows:
    """Which tokens of a step have which adapter, as `add_lora_` takes it.

    Args:
        num_tokens: N.
        num_slots: L.
        device: where the step is computed.
    """

    def __init__(self, num_tokens: int, num_slots: int, device: torch.device) -> None:
        self._numbers = np.arange(num_slots + 1)
        self.rows = torch.zeros(num_tokens, dtype=torch.int64, device=device)
        self.starts = torch.zeros(num_slots + 1, dtype=torch.int32, device=device)

    def fill(self, slots: np.ndarray) -> None:
        """Take the slot of each token, (N,), -1 for none."""
        number = np.where(slots < 0, len(self._numbers) - 1, slots)
        rows = number.argsort(kind="stable")
        self.rows.copy_(torch.from_numpy(rows))
        self.starts.copy_(torch.from_numpy(np.searchsorted(number[rows], self._numbers)))


@dataclass(frozen=True, slots=True)
class _Places:
    """Of one linear layer."""

    down: Tensor  # (L, R, in)
    up: Tensor  # (L, out, R), the transpose of what lies in memory
    scale: Tensor  # (L,), float32
    ranks: Tensor  # (L,), int32; 0 where an adapter leaves the layer alone


class LoraSlots:
    """The places of all layers of a model.

    Args:
        config: of the model, whose layers are the transformer's.
        num_slots: L, adapters at a time.
        max_rank: R.
        dtype: of the model's weights.
        device: the model's.

    Raises:
        ConfigError: the model has none of the layers that adapters act on.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_slots: int,
        max_rank: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._places: dict[str, _Places] = {}
        self.rows: LoraRows | None = None
        """What the tokens of the next forward pass have; None when none has an adapter."""
        for name, (in_size, out_size) in layer_sizes(config).items():
            up = lazy_zeros((num_slots, max_rank, out_size), dtype, device)
            self._places[name] = _Places(
                lazy_zeros((num_slots, max_rank, in_size), dtype, device),
                up.transpose(1, 2),
                torch.zeros(num_slots, device=device),
                torch.zeros(num_slots, dtype=torch.int32, device=device),
            )

    def check(self, stored: StoredAdapter) -> None:
        """Refuse an adapter that does not fit the model.

        Raises:
            ModelError: it is for layers that are not there, or for others in size.
        """
        for name, layer in stored.layers.items():
            places = self._places.get(name)
            if places is None:
                raise ModelError(
                    f"{stored.folder} adapts {name}, which this model has not, or which cannot be "
                    "adapted while serving; merge it (llmlab merge) and serve the merged model"
                )
            sizes = (places.down.shape[2], places.up.shape[1])
            if sizes != (layer.in_size, layer.out_size):
                raise ModelError(
                    f"{stored.folder}: {name} maps {layer.in_size} numbers to {layer.out_size}, in "
                    f"this model {sizes[0]} to {sizes[1]}; serve the model it was trained on "
                    f"({stored.base_model})"
                )

    def write(
        self, slot: int, weights: Mapping[str, tuple[Tensor, Tensor]], stored: StoredAdapter
    ) -> None:
        """Put an adapter that fits into a place that nobody uses."""
        for name, places in self._places.items():
            layer = stored.layers.get(name)
            rank = layer.rank if layer else 0
            before = int(places.ranks[slot])
            if layer:
                down, up = weights[name]
                places.down[slot, :rank] = down
                places.up[slot, :, :rank] = up
                places.scale[slot] = layer.scaling
            places.down[slot, rank:before] = 0
            places.up[slot, :, rank:before] = 0
            places.ranks[slot] = rank

    def adapt_(self, model: LanguageModel) -> None:
        """Let a model that is ready to serve (`fuse_` with its gate apart) use the places."""
        for at, module in list(model.named_modules()):
            if isinstance(module, Attention):
                names = [f"{at}.{which}" for which in ("q_proj", "k_proj", "v_proj")]
                if module.qkv_proj is not None:
                    self._wrap(module, "qkv_proj", names)
                else:
                    for name in names:
                        self._wrap(module, name.rpartition(".")[2], [name])
                self._wrap(module, "o_proj", [f"{at}.o_proj"])
            if isinstance(module, MLP):
                for which in ("gate_proj", "up_proj", "down_proj"):
                    self._wrap(module, which, [f"{at}.{which}"])

    def _wrap(self, module: nn.Module, attribute: str, names: Sequence[str]) -> None:
        linear = module.get_submodule(attribute)
        setattr(module, attribute, _AdaptedLinear(linear, self, [self._places[n] for n in names]))


class _AdaptedLinear(nn.Module):
    """A linear layer, or several joined ones, and what the adapters add to its result."""

    def __init__(self, linear: nn.Module, slots: LoraSlots, places: Sequence[_Places]) -> None:
        super().__init__()
        self.linear = linear
        self._slots = slots
        self._places = places
        self._sizes = [each.up.shape[1] for each in places]  # of their parts of the result

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, in) to (B, T, out)."""
        out = self.linear(x)
        taken = self._slots.rows
        if taken is not None:
            x = x.flatten(0, -2)  # (N, in)
            parts = out.flatten(0, -2).split(self._sizes, dim=1)  # (N, own out)
            for own, part in zip(self._places, parts, strict=True):
                add_lora_(part, x, own.down, own.up, own.scale, taken.rows, taken.starts, own.ranks)
        return out


def layer_sizes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Return in and out of every linear layer that an adapter can act on, by its name.

    Raises:
        ConfigError: there is none.
    """
    E, F, D = config.hidden_size, config.intermediate_size, config.head_dim
    H, G = config.num_attention_heads, config.num_key_value_heads
    if config.is_recurrent or config.architecture == "GPT2LMHeadModel":
        raise ConfigError(
            "adapters act on the layers of Llama, Mistral, Qwen2 and Qwen3, this model is a "
            f"{config.architecture}; merge the adapter (llmlab merge) and serve the merged model"
        )
    attention = {
        "q_proj": (E, H * D),
        "k_proj": (E, G * D),
        "v_proj": (E, G * D),
        "o_proj": (H * D, E),
    }
    dense = {"gate_proj": (E, F), "up_proj": (E, F), "down_proj": (F, E)}
    sizes = {}
    for number in range(config.num_hidden_layers):
        at = f"model.layers.{number}"
        sizes.update({f"{at}.self_attn.{name}": size for name, size in attention.items()})
        if not config.has_experts(number):
            sizes.update({f"{at}.mlp.{name}": size for name, size in dense.items()})
    return sizes
