"""Attention as a callable: the model computes queries, keys and values and knows nothing else.

`attend(layer, q, k, v) -> out` is the seam: training passes what `attention_of` returns, or keeps
packed documents apart (documents.py), `generate` passes a cache (cache.py), the server its pages.
Rotary positions are already applied to q and k. Sliding windows: arXiv:2004.05150.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.kernels.attention import attention
from llmlab.kernels.op import launches
from llmlab.kernels.precision import product_dtype

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Layer index, q (B, H, T, D), k and v (B, G, T, D); returns (B, H, T, D)."""

_MIN_BLOCK_LEN = 128
_SHORT_LEN = 256


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
    if launches(q):
        return _by_kernel(q, k, v, None)
    is_grouped = q.shape[1] != k.shape[1]
    if not _is_faster_in_float32(q):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=is_grouped)
    wide = q.float(), k.float(), v.float()
    with torch.autocast("cpu", enabled=False):
        out = F.scaled_dot_product_attention(*wide, is_causal=True, enable_gqa=is_grouped)
    return out.to(q.dtype)


def _by_kernel(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """Attend causally by the kernel, which autocast does not reach."""
    dtype = product_dtype(q)
    return attention(q.to(dtype), k.to(dtype), v.to(dtype), window=window)


def _is_faster_in_float32(q: Tensor) -> bool:
    """Tell whether torch's backward pass in bfloat16 takes longer than in float32.

    On a CPU it works on padded blocks, which short rows do not fill: measured with AMX, 4.5 against
    1.1 ms at T=64, as long at T=256, half as long at T=1024.
    """
    is_short = q.shape[2] <= _SHORT_LEN
    return is_short and q.dtype == torch.bfloat16 and q.device.type == "cpu" and q.requires_grad


def attention_of(windows: Sequence[int | None]) -> Attend:
    """Return the attention of a model within whole rows.

    Args:
        windows: for each layer the tokens that a position sees, itself included; None for all.
    """
    return causal if all(window is None for window in windows) else Windowed(tuple(windows))


@dataclass(frozen=True)
class Windowed:
    """Causal attention in which some layers see only the last tokens."""

    windows: tuple[int | None, ...]
    """For each layer the tokens that a position sees, itself included; None for all."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend as `causal` does, in the window of the layer."""
        return in_window(q, k, v, self.windows[layer])


def in_window(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """Attend causally to the last `window` positions, in time and memory T x window.

    Queries are taken a block at a time, and each block is compared with the keys of its own and
    the previous block only, which hold its window.

    Args:
        q: (B, H, T, D).
        k: (B, G, T, D).
        v: (B, G, T, D).
        window: positions seen, the query's own included; None for all.

    Returns:
        (B, H, T, D).
    """
    B, H, T, D = q.shape
    if window is None or window >= T:
        return causal(0, q, k, v)
    if launches(q):
        return _by_kernel(q, k, v, window)
    length = min(max(window, _MIN_BLOCK_LEN), T)
    mask = _band(length, window, q.device)  # (length, 2 length)
    q_first, k_first, v_first = (x[:, :, :length] for x in (q, k, v))
    first = _attend(q_first, k_first, v_first, mask[:, length:])
    num_blocks = -(-(T - length) // length)
    if not num_blocks:
        return first
    end = num_blocks * length  # at most T
    keys, values = (
        torch.cat((_folded(x[:, :, :end], length), _folded(x[:, :, length:], length)), dim=2)
        for x in (k, v)
    )  # (B blocks, G, 2 length, D)
    rest = _attend(_folded(q[:, :, length:], length), keys, values, mask)
    rest = rest.view(B, num_blocks, H, length, D).transpose(1, 2).reshape(B, H, end, D)
    return torch.cat((first, rest[:, :, : T - length]), dim=2)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1]
    )


def _band(length: int, window: int, device: torch.device) -> Tensor:
    """Return which keys of two blocks a query of the second one sees: (length, 2 length)."""
    queries = torch.arange(length, 2 * length, device=device)[:, None]  # (length, 1)
    keys = torch.arange(2 * length, device=device)[None]  # (1, 2 length)
    return (keys <= queries) & (keys > queries - window)


def _folded(x: Tensor, length: int) -> Tensor:
    """Cut (B, H, T, D) into blocks that lie in the batch: (B blocks, H, length, D), zeros last."""
    B, H, T, D = x.shape
    x = F.pad(x, (0, 0, 0, -T % length)).reshape(B, H, -1, length, D)
    return x.transpose(1, 2).reshape(-1, H, length, D)
