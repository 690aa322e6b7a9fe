"""Rotary position embedding: rotate pairs of query and key numbers by an angle per position.

Angles, cosines and sines are float32 whatever the model's dtype. Pairs are number d and d + D/2 of
a head ("rotate half", Hugging Face's layout). Source: Su et al. 2021, arXiv:2104.09864.
"""

import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from llmlab.model.config import ModelConfig
from llmlab.model.rope_config import RopeScaling


class RotaryEmbedding(nn.Module):
    """Turns positions into cosines and sines."""

    inv_freq: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self._config = config
        self.register_buffer("inv_freq", inverse_frequencies(config), persistent=False)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of the angles.

        Args:
            positions: (B, T) or (1, T), whole numbers.
            dtype: of the result; the angles are float32.

        Returns:
            Two tensors (B, 1, T, D), both halves of D alike.
        """
        angles = positions[:, None, :, None].float() * self.inv_freq  # (B, 1, T, D)
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # model.to(bfloat16) would round the frequencies and shift every angle far from 0.
        super()._apply(fn, recurse)
        self.inv_freq = inverse_frequencies(self._config).to(self.inv_freq.device)
        return self


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair of x by its position's angle.

    Args:
        x: (B, H, T, D).
        cos: (B, 1, T, D).
        sin: (B, 1, T, D).

    Returns:
        (B, H, T, D).
    """
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """Return the angle per position of each number of a head: (D,), float32, both halves alike."""
    D = config.head_dim
    exponents = torch.arange(0, D, 2, dtype=torch.float32, device="cpu") / D
    inv_freq = 1.0 / config.rope_theta**exponents  # (D / 2,)
    if config.rope_scaling is not None:
        inv_freq = _scaled(inv_freq, config.rope_scaling)
    return torch.cat((inv_freq, inv_freq))


def _scaled(inv_freq: Tensor, scaling: RopeScaling) -> Tensor:
    if scaling.rope_type == "linear":
        return inv_freq / scaling.factor
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    original = scaling.original_max_position_embeddings
    assert low is not None  # RopeScaling has checked all three
    assert high is not None
    assert original is not None
    turns = original * inv_freq / (2 * math.pi)  # full turns within the original length
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return kept * inv_freq + (1 - kept) * inv_freq / scaling.factor
