"""Rotary position embedding: rotate pairs of query and key numbers by an angle per position.

Angles, cosines and sines are float32 whatever the model's dtype. Pairs are number d and d + D/2 of
a head ("rotate half", Hugging Face's layout). Sources: arXiv:2104.09864; of the scalings
arXiv:2306.15595 (linear), arXiv:2407.21783 (llama3), arXiv:2309.00071 (dynamic, yarn).
"""

import math
from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.model.config import ModelConfig
from llmlab.model.rope_config import RopeScaling


class RotaryEmbedding(nn.Module):
    """Turns positions into cosines and sines."""

    inv_freq: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self._config = config
        self._attention_factor = attention_factor(config.rope_scaling)
        scaling = config.rope_scaling
        self._is_dynamic = scaling is not None and scaling.rope_type == "dynamic"
        self.register_buffer("inv_freq", inverse_frequencies(config), persistent=False)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of the angles, times yarn's attention factor.

        Args:
            positions: (B, T) or (1, T), whole numbers.
            dtype: of the result; the angles are float32.

        Returns:
            Two tensors (B, 1, T, D), both halves of D alike.
        """
        inv_freq = self._stretched(positions) if self._is_dynamic else self.inv_freq
        angles = positions[:, None, :, None].float() * inv_freq  # (B, 1, T, D)
        cos, sin = angles.cos(), angles.sin()
        if self._attention_factor != 1.0:
            cos, sin = cos * self._attention_factor, sin * self._attention_factor
        return cos.to(dtype), sin.to(dtype)

    @property
    def can_tabulate(self) -> bool:
        """Whether the angles of a position are the same in every text."""
        return not self._is_dynamic

    def _stretched(self, positions: Tensor) -> Tensor:
        """Return the frequencies (D,) for texts that reach the largest of `positions`."""
        longest = (positions.max() + 1).clamp(min=self._config.max_position_embeddings)
        return _halves(_inverse_powers(self._config, _dynamic_base(self._config, longest)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # model.to(bfloat16) would round the frequencies and shift every angle far from 0.
        super()._apply(fn, recurse)
        self.inv_freq = inverse_frequencies(self._config).to(self.inv_freq.device)
        return self


class RotaryTable(nn.Module):
    """The cosines and sines of all positions, computed once, to be looked up.

    Args:
        rotary: computes them; its scaling does not depend on the longest text (`can_tabulate`).
        max_len: positions of the table.
        dtype: of the cosines and sines.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, rotary: RotaryEmbedding, max_len: int, dtype: torch.dtype) -> None:
        super().__init__()
        positions = torch.arange(max_len, device=rotary.inv_freq.device)[None]  # (1, max_len)
        cos, sin = rotary(positions, dtype)  # (1, 1, max_len, D)
        self.register_buffer("cos", cos[0, 0], persistent=False)
        self.register_buffer("sin", sin[0, 0], persistent=False)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return what `RotaryEmbedding` does, in the dtype of the table."""
        return F.embedding(positions, self.cos)[:, None], F.embedding(positions, self.sin)[:, None]


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """Return the angle per position of each number of a head: (D,), float32, both halves alike.

    With dynamic scaling these hold up to `max_position_embeddings` tokens.
    """
    with torch.device("cpu"):
        base = torch.tensor(config.rope_theta, dtype=torch.float32)
        inv_freq = _inverse_powers(config, base)  # (D / 2,)
        if config.rope_scaling is not None:
            inv_freq = _SCALED[config.rope_scaling.rope_type](inv_freq, config)
    return _halves(inv_freq)


def _inverse_powers(config: ModelConfig, base: Tensor) -> Tensor:
    D = config.head_dim
    exponents = torch.arange(0, D, 2, dtype=torch.float32, device=base.device) / D
    return 1.0 / base**exponents  # (D / 2,)


def _halves(inv_freq: Tensor) -> Tensor:
    return torch.cat((inv_freq, inv_freq))  # (D,)


def _dynamic_base(config: ModelConfig, longest: Tensor) -> Tensor:
    """Return the base that fits `longest` tokens into the turns of the original length."""
    assert config.rope_scaling is not None
    D, factor = config.head_dim, config.rope_scaling.factor
    stretch = factor * longest / config.max_position_embeddings - (factor - 1)
    return config.rope_theta * stretch ** (D / (D - 2))


def _linear(inv_freq: Tensor, config: ModelConfig) -> Tensor:
    assert config.rope_scaling is not None
    return inv_freq / config.rope_scaling.factor


def _llama3(inv_freq: Tensor, config: ModelConfig) -> Tensor:
    scaling = config.rope_scaling
    assert scaling is not None  # and RopeScaling has checked what llama3 needs
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    original = scaling.original_max_position_embeddings
    assert low is not None
    assert high is not None
    assert original is not None
    turns = original * inv_freq / (2 * math.pi)  # full turns within the original length
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return kept * inv_freq + (1 - kept) * inv_freq / scaling.factor


def _yarn(inv_freq: Tensor, config: ModelConfig) -> Tensor:
    scaling, D = config.rope_scaling, config.head_dim
    assert scaling is not None
    assert scaling.original_max_position_embeddings is not None
    length = scaling.original_max_position_embeddings

    def dimension(turns: float) -> float:
        """Return which pair of a head turns that often within the original length."""
        return D * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low, high = dimension(scaling.beta_fast or 32), dimension(scaling.beta_slow or 1)
    if scaling.truncate is not False:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, D - 1)
    width = high - low or 0.001  # no division by 0
    divided = ((torch.arange(D // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return inv_freq / scaling.factor * divided + inv_freq * (1 - divided)


def attention_factor(scaling: RopeScaling | None) -> float:
    """Return yarn's factor on cosines and sines; it is 1 for every other kind."""
    if scaling is None or scaling.rope_type != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    growth = 0.1 * math.log(scaling.factor) if scaling.factor > 1 else 0.0
    if scaling.mscale and scaling.mscale_all_dim:
        return (growth * scaling.mscale + 1) / (growth * scaling.mscale_all_dim + 1)
    return growth + 1


_SCALED: dict[str, Callable[[Tensor, ModelConfig], Tensor]] = {
    "linear": _linear,
    "dynamic": lambda inv_freq, _: inv_freq,
    "llama3": _llama3,
    "yarn": _yarn,
}
