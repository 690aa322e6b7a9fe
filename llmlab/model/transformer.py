"""The rotary decoder of Qwen3, Qwen3-MoE, Llama, Mistral and Qwen2.

Pre-norm RMSNorm, rotary positions, grouped-query attention, SwiGLU. Qwen3 normalises q and k per
head, Qwen2 has a bias on q, k and v, Qwen3-MoE has experts. Parameter names and shapes are Hugging
Face's. Not here: attention over a cache (a callable does it), loss, files. Sources:
arXiv:2302.13971 (Llama), arXiv:2305.13245 (grouped queries), arXiv:2002.05202 (SwiGLU),
arXiv:1910.07467 (RMSNorm), arXiv:2505.09388 (Qwen3), arXiv:2310.06825 (Mistral).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from llmlab.kernels.pointwise import rotate, swiglu
from llmlab.model.attention import Attend
from llmlab.model.config import ModelConfig
from llmlab.model.experts import SparseMLP, balancing_loss
from llmlab.model.language_model import LanguageModel, States, empty_embedding
from llmlab.model.layers import kept_or_recomputed
from llmlab.model.norm import RMSNorm
from llmlab.model.rope import RotaryEmbedding


class Attention(nn.Module):
    """Project to heads, rotate, attend, project back."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        E, D = config.hidden_size, config.head_dim
        H, G, bias = config.num_attention_heads, config.num_key_value_heads, config.qkv_bias
        self.layer = layer
        self.head_dim = D
        self.sizes = (H * D, G * D, G * D)
        self.q_proj = nn.Linear(E, H * D, bias=bias)
        self.k_proj = nn.Linear(E, G * D, bias=bias)
        self.v_proj = nn.Linear(E, G * D, bias=bias)
        self.qkv_proj: nn.Module | None = None  # all three at once, where fused.py has joined them
        self.o_proj = nn.Linear(H * D, E, bias=False)
        self.q_norm = RMSNorm(D, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(D, config.rms_norm_eps) if config.qk_norm else None

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """Map (B, T, E) to (B, T, E); cos and sin are (B, 1, T, D)."""
        B, T, _ = x.shape
        q, k, v = (x.view(B, T, -1, self.head_dim) for x in self._projected(x))  # (B, T, H | G, D)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        cos, sin = cos.to(q.dtype), sin.to(q.dtype)
        q = rotate(q.transpose(1, 2), cos, sin)  # (B, H, T, D)
        k = rotate(k.transpose(1, 2), cos, sin)  # (B, G, T, D)
        out = attend(self.layer, q, k, v.transpose(1, 2))  # (B, H, T, D)
        return self.o_proj(out.transpose(1, 2).reshape(B, T, -1))

    def _projected(self, x: Tensor) -> Sequence[Tensor]:
        if self.qkv_proj is None:
            return self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return self.qkv_proj(x).split(self.sizes, dim=-1)


class MLP(nn.Module):
    """SwiGLU: a feed-forward layer whose one half gates the other."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.gate_up_proj: nn.Module | None = None  # both and the gate, where fused.py joined them

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, E) to (B, T, E) through (B, T, F)."""
        if self.gate_up_proj is not None:
            return self.down_proj(self.gate_up_proj(x))
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class DecoderLayer(nn.Module):
    """Attention, then feed-forward, each on a normalised copy and added back."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = SparseMLP(config) if config.has_experts(layer) else MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, *, recompute: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Map (B, T, E) to (B, T, E), with the load (2, experts) of a layer that has experts."""
        return kept_or_recomputed(
            lambda x: self._computed(x, cos, sin, attend), x, recompute=recompute
        )

    def _computed(
        self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend
    ) -> tuple[Tensor, Tensor | None]:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, attend)
        out, load = self.mlp(self.post_attention_layernorm(x)), None
        if isinstance(out, tuple):
            out, load = out
        return x + out, load


class Decoder(nn.Module):
    """Embedding, layers and final norm: everything but the head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = empty_embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb: nn.Module = RotaryEmbedding(config)

    def forward(
        self, input_ids: Tensor, positions: Tensor | None, attend: Attend, *, recompute: bool
    ) -> States:
        """Map (B, T) token ids to (B, T, E) states after the final norm."""
        if positions is None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]  # (1, T)
        x = self.embed_tokens(input_ids)  # (B, T, E)
        cos, sin = self.rotary_emb(positions, x.dtype)  # (B, 1, T, D)
        loads = []
        for layer in self.layers:
            x, load = layer(x, cos, sin, attend, recompute=recompute)
            if load is not None:
                loads.append(load)
        if not loads:
            return States(self.norm(x))
        num_tokens = len(loads) * input_ids.numel()
        return States(self.norm(x), balancing_loss(torch.stack(loads).sum(0), num_tokens))


class Transformer(LanguageModel):
    """Qwen3, Qwen3-MoE, Llama, Mistral or Qwen2, as `config.architecture` says.

    With a tied head there is no `lm_head` parameter, as in the files Hugging Face writes.

    Weights start as normal noise with standard deviation `initializer_range`; the two projections
    that write into the residual stream start smaller by sqrt(2 x layers), so that the stream's
    variance does not grow with depth (GPT-2's rule). The loss at step 0 is close to ln V.
    """

    def __init__(
        self, config: ModelConfig, *, z_loss: float = 0.0, recompute: bool = False
    ) -> None:
        super().__init__(config, z_loss=z_loss, recompute=recompute)
        self.model = Decoder(config)
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        )
        self._initialise(into_residual=("o_proj.weight", "down_proj.weight", "experts.down_proj"))

    def states(self, input_ids: Tensor, positions: Tensor | None, attend: Attend) -> States:
        """Return the states (B, T, E) after the final norm and the experts' balancing loss."""
        return self.model(input_ids, positions, attend, recompute=self.recompute)

    def head_weight(self) -> Tensor:
        """Return the matrix (V, E) that turns hidden states into logits."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
