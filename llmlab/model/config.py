"""The shape of a language model: Hugging Face's config.json as a frozen dataclass.

Not here: reading and writing the JSON spelling (config_json.py), named sizes (presets.py), tensors.
This module does not import torch.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from llmlab.errors import ModelError, did_you_mean
from llmlab.model.config_json import (
    ARCHITECTURES,
    ATTENTION_SIZES,
    RECURRENT,
    SIZES,
    read_fields,
    write_fields,
)
from llmlab.model.experts_config import Experts
from llmlab.model.presets import preset_fields, sized_fields
from llmlab.model.rope_config import RopeScaling
from llmlab.model.window_config import SLIDING, check_windows

_ACTIVATIONS = {
    "GPT2LMHeadModel": ("gelu_new", "gelu_pytorch_tanh", "gelu"),
    "RNNForCausalLM": ("tanh", "relu"),
    "LSTMForCausalLM": ("tanh",),
    "GRUForCausalLM": ("tanh",),
}
_NUM_GATES = {"RNNForCausalLM": 1, "LSTMForCausalLM": 4, "GRUForCausalLM": 3}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and constants of a decoder-only language model, under Hugging Face's field names.

    GPT-2's own names (`n_embd`, `n_layer`, ...) are translated when its config.json is read or
    written; in memory every architecture has the names below. Recurrent models have no heads and no
    feed-forward layer: their four sizes are 0.
    """

    architecture: str = "Qwen3ForCausalLM"
    """A class of transformers (Qwen3, Qwen3Moe, Llama, Mistral or Qwen2 with ForCausalLM,
    GPT2LMHeadModel), or RNNForCausalLM, LSTMForCausalLM or GRUForCausalLM, which it has not."""
    vocab_size: int
    """V, rows of the embedding; at least the tokenizer's size."""
    hidden_size: int
    """E, width of the residual stream."""
    intermediate_size: int
    """F, width of the feed-forward layer."""
    num_hidden_layers: int
    """Decoder layers."""
    num_attention_heads: int
    """H, query heads."""
    num_key_value_heads: int
    """G, key/value heads; H is a multiple of it."""
    head_dim: int
    """D, width of one head; even."""
    max_position_embeddings: int = 2048
    """Longest context in tokens the model is meant for."""
    rms_norm_eps: float = 1e-6
    """Added to the mean square (GPT-2: the variance) in every norm."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies; GPT-2 has none."""
    rope_scaling: RopeScaling | None = None
    """Stretching of the rotary frequencies."""
    sliding_window: int | None = None
    """Tokens that a sliding layer attends to, its own included; None lets every layer see all."""
    layer_types: tuple[str, ...] | None = None
    """With a window: `sliding_attention` or `full_attention` for each layer; None makes all
    slide."""
    experts: Experts | None = None
    """Qwen3-MoE: the experts of its feed-forward layers."""
    hidden_act: str = "silu"
    """Activation of the feed-forward layer: silu; GPT-2: gelu_new, gelu_pytorch_tanh or gelu.
    Recurrent models: that of the state, tanh (RNN: or relu)."""
    tie_word_embeddings: bool = False
    """Whether the head uses the embedding's weights."""
    initializer_range: float = 0.02
    """Standard deviation of the initial weights."""
    bos_token_id: int | None = None
    """Token that starts a text, if any."""
    eos_token_id: int | tuple[int, ...] | None = None
    """Token or tokens that end a text."""
    pad_token_id: int | None = None
    """Token that fills up a batch, never trained on."""

    def __post_init__(self) -> None:
        known = tuple(ARCHITECTURES.values())
        if self.architecture not in known:
            raise ModelError(
                f"architecture={self.architecture!r} is not supported"
                f"{did_you_mean(self.architecture, known)} (supported: {', '.join(known)})"
            )
        for name in SIZES:
            value = getattr(self, name)
            if self.is_recurrent and name in ATTENTION_SIZES:
                if value:
                    raise ModelError(f"{self.architecture} has no {name}={value}; set it to 0")
            elif not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ModelError(f"{name}={value!r} is not a positive whole number; correct it")
        if not self.is_recurrent:
            self._check_heads()
        check_windows(
            self.architecture, self.sliding_window, self.layer_types, self.num_hidden_layers
        )
        if (self.experts is None) == (self.architecture == "Qwen3MoeForCausalLM"):
            raise ModelError(
                f"experts={self.experts} does not fit {self.architecture}; "
                "Qwen3MoeForCausalLM has experts, no other architecture does"
            )
        allowed = _ACTIVATIONS.get(self.architecture, ("silu",))
        if self.hidden_act not in allowed:
            raise ModelError(
                f"hidden_act={self.hidden_act!r} is not supported for {self.architecture}; "
                f"supported: {', '.join(allowed)}"
            )

    def _check_heads(self) -> None:
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        if heads % groups:
            raise ModelError(
                f"num_attention_heads={heads} is not a multiple of num_key_value_heads={groups}; "
                f"choose a divisor of {heads}"
            )
        if self.is_gpt2:
            if heads * self.head_dim != self.hidden_size or groups != heads:
                raise ModelError(
                    f"GPT-2 needs num_attention_heads x head_dim == hidden_size and as many "
                    f"key/value heads, got {heads} x {self.head_dim}, {self.hidden_size} and "
                    f"{groups}; change hidden_size or the heads"
                )
        elif self.head_dim % 2:
            raise ModelError(f"head_dim={self.head_dim} is odd; rotary positions need an even one")

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """Build from the content of a config.json.

        Raises:
            ModelError: another architecture, a missing, unknown or unsupported field.
        """
        fields = read_fields(raw)
        missing = [name for name in _REQUIRED if name not in fields]
        if missing:
            raise ModelError(f"config.json lacks {', '.join(missing)}; add what is missing")
        return cls(**fields)

    @classmethod
    def preset(
        cls,
        name: str,
        *,
        vocab_size: int,
        max_position_embeddings: int | None = None,
        architecture: str | None = None,
    ) -> Self:
        """Build a named size (`presets.py`) for a tokenizer's vocabulary.

        Args:
            name: quickstart, char, tiny, moe, nano or smollm2-135m.
            vocab_size: V.
            max_position_embeddings: tokens of context; the preset's own when None.
            architecture: a class name or model_type such as "llama"; the preset's own when None.

        Raises:
            ModelError: no such preset or architecture.
        """
        fields = preset_fields(name, ARCHITECTURES.get(architecture or "", architecture))
        return cls._sized(fields, vocab_size, max_position_embeddings)

    @classmethod
    def of_depth(
        cls,
        depth: int,
        *,
        vocab_size: int,
        max_position_embeddings: int | None = None,
        architecture: str | None = None,
    ) -> Self:
        """Build a size of the ladder (`presets.py`), from about 1 M parameters to 1 B and more.

        Args:
            depth: layers; the width follows.
            vocab_size: V.
            max_position_embeddings: tokens of context; 1024 when None.
            architecture: a class name or model_type such as "llama"; Qwen3's when None.

        Raises:
            ModelError: depth is not on the ladder, or no such architecture.
        """
        fields = sized_fields(depth, ARCHITECTURES.get(architecture or "", architecture))
        return cls._sized(fields, vocab_size, max_position_embeddings)

    @classmethod
    def _sized(cls, fields: dict[str, Any], vocab_size: int, max_len: int | None) -> Self:
        if max_len is not None:
            fields["max_position_embeddings"] = max_len
        return cls(vocab_size=vocab_size, tie_word_embeddings=True, **fields)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of a config.json that stock transformers loads."""
        return write_fields({f.name: getattr(self, f.name) for f in dataclasses.fields(self)})

    @property
    def is_gpt2(self) -> bool:
        """Whether the model is GPT-2 rather than the rotary decoder."""
        return self.architecture == "GPT2LMHeadModel"

    @property
    def is_recurrent(self) -> bool:
        """Whether the model is a recurrent network, without attention."""
        return self.architecture in RECURRENT.values()

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normalised per head (Qwen3)."""
        return self.architecture in ("Qwen3ForCausalLM", "Qwen3MoeForCausalLM")

    @property
    def qkv_bias(self) -> bool:
        """Whether the query, key and value projections have a bias (Qwen2)."""
        return self.architecture == "Qwen2ForCausalLM"

    @property
    def windows(self) -> tuple[int | None, ...]:
        """For each layer the tokens it attends to at most, or None for all."""
        types = self.layer_types or (SLIDING,) * self.num_hidden_layers
        return tuple(self.sliding_window if kind == SLIDING else None for kind in types)

    def has_experts(self, layer: int) -> bool:
        """Tell whether the feed-forward layer of a layer is a mixture of experts."""
        return self.experts is not None and self.experts.in_layer(layer)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a text, as a tuple that may be empty."""
        ids = self.eos_token_id
        return () if ids is None else ids if isinstance(ids, tuple) else (ids,)

    @property
    def num_embedding_parameters(self) -> int:
        """Parameters that are only looked up: the tables, less one that is also the head."""
        tables = self.vocab_size * (0 if self.tie_word_embeddings else 1)
        return (tables + (self.max_position_embeddings if self.is_gpt2 else 0)) * self.hidden_size

    @property
    def num_parameters(self) -> int:
        """All parameters, a tied head counted once."""
        return self._num_parameters(self.experts.num_experts if self.experts else 0)

    @property
    def num_active_parameters(self) -> int:
        """Parameters that one token goes through: of the experts of a layer only its own."""
        return self._num_parameters(self.experts.num_experts_per_tok if self.experts else 0)

    def _num_parameters(self, num_experts: int) -> int:
        E, F, L = self.hidden_size, self.intermediate_size, self.num_hidden_layers
        outer = self.num_embedding_parameters + self.vocab_size * E
        if self.is_gpt2:
            layer = (4 * E * E + 4 * E) + (2 * E * F + F + E) + 4 * E
            return outer + L * layer + 2 * E
        if self.is_recurrent:
            return outer + L * (_NUM_GATES[self.architecture] * 2 * (E * E + E) + E) + E
        q = self.num_attention_heads * self.head_dim
        kv = self.num_key_value_heads * self.head_dim
        attention = (
            2 * E * (q + kv) + (q + 2 * kv) * self.qkv_bias + 2 * self.head_dim * self.qk_norm
        )
        total = outer + L * (attention + 2 * E) + E
        if self.experts is None:
            return total + L * 3 * E * F
        num_sparse = sum(map(self.experts.in_layer, range(L)))
        sparse = E * (
            self.experts.num_experts + 3 * num_experts * self.experts.moe_intermediate_size
        )
        return total + num_sparse * sparse + (L - num_sparse) * 3 * E * F

    def flops_per_token(self, context_len: int) -> int:
        """Floating-point operations to train on one token, forward and backward.

        6 for each parameter that multiplies (tables that are only looked up do not, nor experts
        that the token does not visit), and 12·H·D for each token attended to, T / 2 on average in
        a layer that sees all T = context_len. The forward pass alone is a third of it.
        Source: arXiv:2204.02311, appendix B, with attention halved because a causal kernel skips
        the future.
        """
        width = self.num_attention_heads * self.head_dim
        seen = sum(_mean_seen(context_len, window) for window in self.windows)
        multiplied = self.num_active_parameters - self.num_embedding_parameters
        return 6 * multiplied + round(12 * width * seen)

    def kv_bytes_per_token(self, bytes_per_number: int = 2) -> int:
        """Bytes of key/value cache one token takes: 2·L·G·D numbers of 2 bytes (bfloat16) each."""
        numbers = 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim
        return numbers * bytes_per_number


def _mean_seen(context_len: int, window: int | None) -> float:
    """Return how many tokens one of a context attends to on average, its own counted half."""
    seen = context_len if window is None else min(window, context_len)
    return seen - seen * seen / (2 * context_len)


_REQUIRED = SIZES[:-1]
