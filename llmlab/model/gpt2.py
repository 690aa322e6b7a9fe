"""GPT-2: learned positions, LayerNorm with bias, one projection for q, k and v, GELU.

Parameter names and orientation are Hugging Face's (its `Conv1D` keeps weights as (in, out)). Kept
for loading OpenAI's weights and for comparing with nanoGPT. Source: Radford et al. 2019.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.errors import ModelError
from llmlab.model.attention import Attend
from llmlab.model.config import ModelConfig
from llmlab.model.language_model import LanguageModel, States, empty_embedding
from llmlab.model.layers import kept_or_recomputed


class Conv1D(nn.Module):
    """A linear layer with bias whose weight is (in, out)."""

    def __init__(self, out_size: int, in_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_size, out_size))
        self.bias = nn.Parameter(torch.zeros(out_size))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return F.linear(x, self.weight.t(), self.bias)


class GPT2Attention(nn.Module):
    """Project to heads, attend, project back."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.c_attn = Conv1D(3 * config.hidden_size, config.hidden_size)
        self.c_proj = Conv1D(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        """Map (B, T, E) to (B, T, E)."""
        B, T, E = x.shape
        q, k, v = (
            part.view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, H, T, D)
            for part in self.c_attn(x).split(E, dim=-1)
        )
        out = attend(self.layer, q, k, v)  # (B, H, T, D)
        return self.c_proj(out.transpose(1, 2).reshape(B, T, E))


class GPT2MLP(nn.Module):
    """Feed-forward layer with GELU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = Conv1D(config.intermediate_size, config.hidden_size)
        self.c_proj = Conv1D(config.hidden_size, config.intermediate_size)
        self.approximate = "none" if config.hidden_act == "gelu" else "tanh"

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, E) to (B, T, E) through (B, T, F)."""
        return self.c_proj(F.gelu(self.c_fc(x), approximate=self.approximate))


class GPT2Block(nn.Module):
    """Attention, then feed-forward, each on a normalised copy and added back."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.hidden_size, config.rms_norm_eps)
        self.attn = GPT2Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GPT2MLP(config)

    def forward(self, x: Tensor, attend: Attend, *, recompute: bool) -> Tensor:
        """Map (B, T, E) to (B, T, E)."""
        return kept_or_recomputed(lambda x: self._computed(x, attend), x, recompute=recompute)

    def _computed(self, x: Tensor, attend: Attend) -> Tensor:
        x = x + self.attn(self.ln_1(x), attend)
        return x + self.mlp(self.ln_2(x))


class GPT2Decoder(nn.Module):
    """Token and position embedding, blocks and final norm: everything but the head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.wte = empty_embedding(config.vocab_size, config.hidden_size)
        self.wpe = empty_embedding(config.max_position_embeddings, config.hidden_size)
        self.h = nn.ModuleList(
            GPT2Block(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.ln_f = nn.LayerNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, input_ids: Tensor, positions: Tensor | None, attend: Attend, *, recompute: bool
    ) -> States:
        """Map (B, T) token ids to (B, T, E) states after the final norm."""
        T = input_ids.shape[1]
        if positions is None:
            num_positions = self.wpe.num_embeddings
            if num_positions < T:
                raise ModelError(
                    f"{T} tokens do not fit GPT-2's {num_positions} learned positions; "
                    "pass a shorter text"
                )
            positions = torch.arange(T, device=input_ids.device)[None]  # (1, T)
        x = self.wte(input_ids) + self.wpe(positions)  # (B, T, E)
        for block in self.h:
            x = block(x, attend, recompute=recompute)
        return States(self.ln_f(x))


class GPT2(LanguageModel):
    """GPT-2; the tied head is the rule, and then there is no `lm_head` parameter.

    Weights start as normal noise with standard deviation `initializer_range`, projections into the
    residual stream smaller by sqrt(2 x layers), biases at zero, as in GPT-2.
    """

    def __init__(
        self, config: ModelConfig, *, z_loss: float = 0.0, recompute: bool = False
    ) -> None:
        super().__init__(config, z_loss=z_loss, recompute=recompute)
        self.transformer = GPT2Decoder(config)
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        )
        self._initialise(into_residual=("c_proj.weight",))

    def states(self, input_ids: Tensor, positions: Tensor | None, attend: Attend) -> States:
        """Return the states (B, T, E) after the final norm."""
        return self.transformer(input_ids, positions, attend, recompute=self.recompute)

    def head_weight(self) -> Tensor:
        """Return the matrix (V, E) that turns hidden states into logits."""
        return self.transformer.wte.weight if self.lm_head is None else self.lm_head.weight
