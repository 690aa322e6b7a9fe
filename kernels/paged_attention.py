"""Attention of packed new tokens over a paged cache, reading prompts and decoding in one kernel.

The cache of a layer is (slots, 2, G, D): slot = page * P + place in the page, keys beside values.
With int8 keys and values a scale goes with every slot and head. Sources: arXiv:2309.06180 (pages),
arXiv:2511.11581 (one kernel for both, grouped heads packed into the product).
"""

import torch
from torch import Tensor

from llmlab.kernels.op import define


def paged_attention(
    q: Tensor,
    cache: Tensor,
    kv_scale: Tensor | None,
    page_table: Tensor,
    context_lens: Tensor,
    cu_new: Tensor,
    *,
    page_len: int,
    split_len: int = 512,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attend causally from each sequence's last tokens to its pages; softmax in float32.

    Args:
        q: (N, H, D), sequence after sequence.
        cache: (slots, 2, G, D), of the dtype of q or int8.
        kv_scale: (slots, 2, G), float32, with an int8 cache; else None.
        page_table: (S, most pages), int32; what lies beyond a sequence's pages is not read.
        context_lens: (S,), int32, tokens of each sequence with the new ones; 0 for none.
        cu_new: (S + 1,), int32: where each sequence's new tokens start in q, and N.
        page_len: P, tokens a page.
        split_len: keys one program of a GPU reads; 0 lets one read them all. A multiple of 128.
            Splits are merged in order, and do not depend on the other sequences.
        scale: of the products; D ** -0.5 when None.
        window: tokens a position sees, its own included; None for all.
        softcap: scores are softcap * tanh(score / softcap); None leaves them.

    Returns:
        (N, H, D), dtype of q.
    """
    return _paged_attention(
        q, cache, kv_scale, page_table, context_lens, cu_new, page_len, split_len,
        q.shape[-1] ** -0.5 if scale is None else scale, window or 0, softcap or 0.0,
    )  # fmt: skip


def write_kv(cache: Tensor, kv_scale: Tensor | None, slots: Tensor, k: Tensor, v: Tensor) -> None:
    """Store keys and values, rounded to int8 where the cache is.

    Args:
        cache: (slots, 2, G, D), changed in place.
        kv_scale: (slots, 2, G), float32, changed in place, with an int8 cache; else None.
        slots: (N,), int64: where each token goes; a negative one is left out.
        k: (N, G, D).
        v: (N, G, D).
    """
    _write_kv(cache, kv_scale, slots, k, v)


def paged_attention_twin(
    q: Tensor,
    cache: Tensor,
    kv_scale: Tensor | None,
    page_table: Tensor,
    context_lens: Tensor,
    cu_new: Tensor,
    page_len: int,
    split_len: int,
    scale: float,
    window: int,
    softcap: float,
) -> Tensor:
    """Compute `paged_attention` in plain PyTorch, a sequence at a time."""
    out = torch.zeros_like(q)
    group = q.shape[1] // cache.shape[2]
    bounds = cu_new.tolist()
    for seq, length in enumerate(context_lens.tolist()):
        rows = slice(bounds[seq], bounds[seq + 1])
        if rows.start == rows.stop or length == 0:
            continue
        at = torch.arange(length, device=q.device)
        slots = page_table[seq].long()[at // page_len] * page_len + at % page_len
        kv = cache[slots].float()  # (S, 2, G, D)
        if kv_scale is not None:
            kv = kv * kv_scale[slots][..., None]
        keys, values = kv.repeat_interleave(group, dim=2).unbind(1)  # (S, H, D)
        scores = torch.einsum("thd,shd->hts", q[rows].float(), keys) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        positions = at[length - (rows.stop - rows.start) :, None]
        hidden = at > positions
        if window:
            hidden = hidden | (at <= positions - window)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        out[rows] = torch.einsum("hts,shd->thd", weights, values).to(q.dtype)
    return out


def write_kv_twin(
    cache: Tensor, kv_scale: Tensor | None, slots: Tensor, k: Tensor, v: Tensor
) -> None:
    """Compute `write_kv` in plain PyTorch."""
    kept = slots >= 0
    kv = torch.stack((k, v), dim=1)[kept]  # (N, 2, G, D)
    if kv_scale is None:
        cache[slots[kept]] = kv.to(cache.dtype)
        return
    scale = kv.float().abs().amax(-1) / 127  # (N, 2, G)
    inverse = torch.where(scale > 0, 1 / scale.clamp(min=1e-38), 0.0)
    cache[slots[kept]] = (kv.float() * inverse[..., None]).round().to(torch.int8)
    kv_scale[slots[kept]] = scale


def _fake(q: Tensor, *_: object) -> Tensor:
    return q.new_empty(q.shape)


def _fake_write(*_: object) -> None:
    return None


_paged_attention = define(
    "paged_attention(Tensor q, Tensor cache, Tensor? kv_scale, Tensor page_table, "
    "Tensor context_lens, Tensor cu_new, int page_len, int split_len, float scale, int window, "
    "float softcap) -> Tensor",
    twin=paged_attention_twin,
    fake=_fake,
    kernel="paged_attention_triton:paged_attention",
    native="paged_attention_native:paged_attention",
)
_write_kv = define(
    "write_kv(Tensor(a!) cache, Tensor(b!)? kv_scale, Tensor slots, Tensor k, Tensor v) -> ()",
    twin=write_kv_twin,
    fake=_fake_write,
    kernel="paged_attention_triton:write_kv",
    native="paged_attention_native:write_kv",
)
