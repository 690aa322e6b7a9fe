"""Attention over pages on a CPU: C++ for few new tokens, PyTorch's own attention for prompts.

Few tokens make few products of what they read, so reading the pages is what takes time: there
cpp/paged_attention.cpp reads every page once, in place. Long stretches of a prompt are products:
there the pages are gathered and `scaled_dot_product_attention` uses the matrix units.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.kernels.native import NativeFunction, address, empty, native_function

_FEW_TOKENS = 16
"""New tokens of a sequence that are not worth gathering its pages for."""


def paged_attention(
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
    """Run; see paged_attention.py. Whatever `split_len` says, splits are of 512 keys."""
    function = _function("paged_attention", q, cache, "pppppppiiiiiiiiff")
    if function is None:
        return NotImplemented
    q, page_table = q.contiguous(), page_table.contiguous()
    out = empty(q.shape, q.dtype)
    H, G, D = q.shape[1], *cache.shape[2:]
    most_new = _FEW_TOKENS if softcap == 0 else len(q)  # PyTorch's attention knows no soft cap
    function(
        out.data_ptr(), q.data_ptr(), cache.data_ptr(), address(kv_scale), page_table.data_ptr(),
        context_lens.data_ptr(), cu_new.data_ptr(), len(context_lens), H, G, D, page_len,
        page_table.shape[1], most_new, window, scale, softcap,
    )  # fmt: skip
    if len(q) > most_new:
        bounds = cu_new.tolist()
        for seq, length in enumerate(context_lens.tolist()):
            rows = slice(bounds[seq], bounds[seq + 1])
            if rows.stop - rows.start > most_new and length:
                kv = _context(cache, kv_scale, page_table[seq], length, page_len, q.dtype)
                out[rows] = _attend(q[rows], kv, scale, window)
    return out


def write_kv(cache: Tensor, kv_scale: Tensor | None, slots: Tensor, k: Tensor, v: Tensor) -> None:
    """Run; see paged_attention.py."""
    function = _function("write_kv", k, cache, "pppppiiiii")
    if function is None:
        return NotImplemented
    k, v = _dense_heads(k), _dense_heads(v)
    function(
        cache.data_ptr(), address(kv_scale), slots.data_ptr(), k.data_ptr(), v.data_ptr(),
        *k.shape, k.stride(0), v.stride(0),
    )  # fmt: skip
    return None


def _dense_heads(x: Tensor) -> Tensor:
    """Return x (N, G, D) with the heads of a token in a row, copied only where they are not."""
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()


def _function(name: str, x: Tensor, cache: Tensor, arguments: str) -> NativeFunction | None:
    """Return the compiled function for these numbers, if there is one."""
    if cache.dtype not in (x.dtype, torch.int8) or not cache.is_contiguous():
        return None
    kind = "_int8" if cache.dtype == torch.int8 else ""
    return native_function(name + kind, x.dtype, arguments)


def _context(
    cache: Tensor,
    kv_scale: Tensor | None,
    page_table: Tensor,
    length: int,
    page_len: int,
    dtype: torch.dtype,
) -> Tensor:
    """Return the keys and values of one sequence, (2, G, S, D)."""
    pages = page_table[: -(-length // page_len)]

    def gathered(x: Tensor) -> Tensor:
        paged = x.view(-1, page_len, *x.shape[1:]).index_select(0, pages)
        return paged.flatten(0, 1)[:length]  # (S, 2, G, ...)

    kv = gathered(cache)
    if kv_scale is not None:
        kv = (kv * gathered(kv_scale)[..., None]).to(dtype)
    return kv.permute(1, 2, 0, 3)


def _attend(q: Tensor, kv: Tensor, scale: float, window: int) -> Tensor:
    """Attend from the last T tokens of a sequence, (T, H, D), to all; grouped heads share views."""
    (T, H, D), (_, G, S, _) = q.shape, kv.shape
    grouped = q.view(T, G, H // G, D).permute(1, 2, 0, 3)  # (G, R, T, D)
    keys, values = kv.unsqueeze(2).expand(-1, -1, H // G, -1, -1).unbind()  # (G, R, S, D)
    mask = None if T == S and not window else _mask(T, S, window, q.dtype)
    out = F.scaled_dot_product_attention(
        grouped, keys, values, attn_mask=mask, is_causal=mask is None, scale=scale
    )
    return out.permute(2, 0, 1, 3).reshape(T, H, D)


@functools.lru_cache(maxsize=8)  # the layers of a model ask for the same ones, a step long
def _mask(T: int, S: int, window: int, dtype: torch.dtype) -> Tensor:
    """Return what is added to the scores of the last T of S tokens, (T, S)."""
    position, key = torch.arange(S - T, S)[:, None], torch.arange(S)
    hidden = key > position
    if window:
        hidden |= key <= position - window
    return torch.zeros(T, S, dtype=dtype).masked_fill_(hidden, -torch.inf)
