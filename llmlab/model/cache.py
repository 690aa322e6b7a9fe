"""A contiguous key/value cache for one batch of equally long rows.

Its `attend` fits the seam of attention.py, so the model computes only the new tokens. The server
keeps its keys and values in pages instead (serve). Takes `config.kv_bytes_per_token` bytes a token,
of layers with a sliding window too.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.errors import ModelError
from llmlab.model.config import ModelConfig


class KVCache:
    """Room for the keys and values of B rows of at most `max_len` tokens.

    A forward pass with `attend=cache.attend` writes after the tokens held so far, `cache.length`;
    `advance` then counts them in.

    Args:
        config: of the model.
        batch_size: B.
        max_len: tokens a row can hold.
        dtype: of keys and values, the model's.
        device: the model's.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        batch_size: int,
        max_len: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        L, G, D = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
        shape = (L, batch_size, G, max_len, D)
        self._keys = torch.empty(shape, dtype=dtype, device=device)
        self._values = torch.empty(shape, dtype=dtype, device=device)
        self._windows = config.windows
        self.max_len = max_len
        self.length = 0

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store k and v (B, G, T, D), and attend from q (B, H, T, D) to all tokens up to its own.

        Returns:
            (B, H, T, D).

        Raises:
            ModelError: the cache is too short.
        """
        T = q.shape[2]
        end = self.length + T
        if end > self.max_len:
            raise ModelError(f"{end} tokens do not fit a cache of max_len={self.max_len}")
        self._keys[layer, :, :, self.length : end] = k
        self._values[layer, :, :, self.length : end] = v
        window = self._windows[layer] or end
        start = max(0, self.length + 1 - window)  # the first key that any query sees
        keys, values = self._keys[layer, :, :, start:end], self._values[layer, :, :, start:end]
        is_causal = T > 1 and not self.length and window >= T
        mask = None
        if T > 1 and not is_causal:
            # SDPA's own causal mask is aligned to the first key, not to the last.
            queries = torch.arange(self.length, end, device=q.device)[:, None]  # (T, 1)
            seen = torch.arange(start, end, device=q.device)[None]  # (1, S)
            mask = (seen <= queries) & (seen > queries - window)  # (T, S)
        return F.scaled_dot_product_attention(
            q,
            keys,
            values,
            attn_mask=mask,
            is_causal=is_causal,
            enable_gqa=q.shape[1] != k.shape[1],
        )

    def advance(self, num_tokens: int) -> None:
        """Count tokens of the last forward pass as held."""
        self.length += num_tokens
