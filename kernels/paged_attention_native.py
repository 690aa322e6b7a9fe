"""Attention over pages on a CPU, in C++ (cpp/paged_attention.cpp)."""

import torch
from torch import Tensor

from llmlab.kernels.native import NativeFunction, address, empty, native_function


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
    function = _function("paged_attention", q, cache, "pppppppiiiiiiiff")
    if function is None:
        return NotImplemented
    q, page_table = q.contiguous(), page_table.contiguous()
    out = empty(q.shape, q.dtype)
    H, G, D = q.shape[1], *cache.shape[2:]
    function(
        address(out), address(q), address(cache), address(kv_scale), address(page_table),
        address(context_lens), address(cu_new), len(context_lens), H, G, D, page_len,
        page_table.shape[1], window, scale, softcap,
    )  # fmt: skip
    return out


def write_kv(cache: Tensor, kv_scale: Tensor | None, slots: Tensor, k: Tensor, v: Tensor) -> None:
    """Run; see paged_attention.py."""
    function = _function("write_kv", k, cache, "pppppiiiii")
    if function is None:
        return NotImplemented
    k, v = _dense_heads(k), _dense_heads(v)
    function(
        address(cache), address(kv_scale), address(slots), address(k), address(v), *k.shape,
        k.stride(0), v.stride(0),
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
