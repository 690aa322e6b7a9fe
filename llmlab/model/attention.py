"""Attention as a callable: the model computes queries, keys and values and knows nothing else.

`attend(layer, q, k, v) -> out` is the seam: training passes `causal`, `generate` passes a cache
(cache.py), the server its pages. Rotary positions are already applied to q and k.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Layer index, q (B, H, T, D), k and v (B, G, T, D); returns (B, H, T, D)."""


def causal(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend from every position to itself and all before it, within the row.

    Args:
        layer: not used; every layer attends alike.
        q: (B, H, T, D).
        k: (B, G, T, D), H a multiple of G.
        v: (B, G, T, D).

    Returns:
        (B, H, T, D), scores scaled by D ** -0.5 and softmax accumulated in float32.
    """
    return F.scaled_dot_product_attention(
        q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]
    )
