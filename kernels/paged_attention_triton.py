"""Triton kernels of attention over a paged cache.

A program takes some new tokens of one sequence with all query heads of one key/value head, so that
a single token of a model with grouped heads still fills the rows of a product. Long contexts are
split among programs; each leaves its weighted values and the logarithm of its weights, and a second
kernel merges them in order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmlab.kernels.common_triton import int8_scale, owner_of_tile, round_to_int8
from llmlab.kernels.tiles import tile

_LOG2_E = tl.constexpr(1.4426950408889634)
_ROWS_OF_PROMPTS = 64
"""Rows of a product (tokens times heads of a group) where sequences have many new tokens."""


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
    """Launch; see paged_attention.py."""
    (N, H, D), G = q.shape, cache.shape[2]
    num_seqs, group = len(context_lens), H // G
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    BM = 16 if num_seqs == N else _ROWS_OF_PROMPTS
    BM = max(BM, triton.next_power_of_2(group))
    tokens = BM // group
    longest = page_table.shape[1] * page_len
    splits = triton.cdiv(longest, split_len) if split_len else 1
    BD = max(16, triton.next_power_of_2(D))
    BN, num_warps, num_stages = tile("paged_attention", q, BD)  # block of keys
    partial = lse = out
    if splits > 1:
        partial = torch.empty(N, H, splits, D, dtype=torch.float32, device=q.device)
        lse = torch.empty(N, H, splits, dtype=torch.float32, device=q.device)
    _paged_attention_kernel[(N // tokens + num_seqs, G, splits)](
        q, cache, kv_scale, page_table, context_lens, cu_new, partial, lse, num_seqs,
        page_table.stride(0), page_len, split_len if splits > 1 else longest, scale, window,
        softcap, q.stride(0), q.stride(1), q.stride(2), cache.stride(0), cache.stride(1),
        cache.stride(2), H, splits, GROUP=group, G=G, D=D, BD=BD, BM=BM, BN=BN, TOKENS=tokens,
        SEARCH=max(1, num_seqs.bit_length()), INT8=cache.dtype == torch.int8,
        WINDOWED=window > 0, CAPPED=softcap > 0, SPLIT=splits > 1,
        num_warps=num_warps, num_stages=num_stages,
    )  # fmt: skip
    if splits > 1:
        _merge_kernel[(N, H)](
            partial, lse, context_lens, cu_new, out, num_seqs, split_len, H, splits,
            D=D, BD=BD, SEARCH=max(1, num_seqs.bit_length()), num_warps=1,
        )  # fmt: skip
    return out


def write_kv(cache: Tensor, kv_scale: Tensor | None, slots: Tensor, k: Tensor, v: Tensor) -> None:
    """Launch; see paged_attention.py."""
    N, G, D = k.shape
    _write_kv_kernel[(N,)](
        cache, kv_scale, slots, k, v, *cache.stride()[:3], *k.stride(), *v.stride(),
        G=G, D=D, BH=triton.next_power_of_2(2 * G), BD=triton.next_power_of_2(D),
        INT8=cache.dtype == torch.int8,
    )  # fmt: skip


@triton.jit
def _scales(kv_scale_ptr, slot, number, is_key, G: tl.constexpr):
    """Load the scale of a head, keys' heads before values', at each slot."""
    return tl.load(kv_scale_ptr + slot * (2 * G) + number, mask=is_key, other=0.0)


@triton.jit
def _paged_attention_kernel(
    q_ptr, cache_ptr, kv_scale_ptr, page_table, context_lens, cu_new, out_ptr, lse_ptr, num_seqs,
    table_row, page_len, split_len, scale, window, softcap, q_t, q_h, q_d, c_slot, c_kv, c_g,
    H, splits,
    GROUP: tl.constexpr, G: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, TOKENS: tl.constexpr, SEARCH: tl.constexpr, INT8: tl.constexpr,
    WINDOWED: tl.constexpr, CAPPED: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    tile, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    seq, number_in_seq = owner_of_tile(cu_new, tile, num_seqs, TOKENS, SEARCH)
    start = tl.load(cu_new + seq)
    new_len = tl.load(cu_new + seq + 1) - start
    first_token = number_in_seq * TOKENS
    context_len = tl.load(context_lens + seq)
    if (first_token >= new_len) | (context_len == 0):
        return
    before = context_len - new_len
    end = tl.minimum(before + tl.minimum(first_token + TOKENS, new_len), (split + 1) * split_len)
    begin = split * split_len
    if WINDOWED:
        begin = tl.maximum(begin, before + first_token - window + 1)
    member = tl.arange(0, BM)
    token, head = first_token + member // GROUP, kv_head * GROUP + member % GROUP
    is_row = (member < TOKENS * GROUP) & (token < new_len)
    number = (start + token).to(tl.int64)
    offs_d = tl.arange(0, BD)
    wide = is_row[:, None] & (offs_d[None, :] < D)
    q = tl.load(
        q_ptr + number[:, None] * q_t + head[:, None] * q_h + offs_d[None, :] * q_d,
        mask=wide, other=0.0,
    )  # fmt: skip
    acc = tl.zeros([BM, BD], tl.float32)
    top = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    head_at = kv_head.to(tl.int64) * c_g
    for n in range(begin // BN * BN, end, BN):
        offs_n = n + tl.arange(0, BN)
        is_key = (offs_n >= begin) & (offs_n < end)
        page = tl.load(page_table + seq * table_row + offs_n // page_len, mask=is_key, other=0)
        slot = page.to(tl.int64) * page_len + offs_n % page_len
        places = cache_ptr + slot[:, None] * c_slot + head_at + offs_d[None, :]
        inside = is_key[:, None] & (offs_d[None, :] < D)
        k = tl.load(places, mask=inside, other=0.0).to(q.dtype)
        v = tl.load(places + c_kv, mask=inside, other=0.0).to(q.dtype)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if INT8:
            scores *= _scales(kv_scale_ptr, slot, kv_head, is_key, G)[None, :]
        if CAPPED:
            scores = softcap * (2 * tl.sigmoid(2 * scores / softcap) - 1)
        seen = is_key[None, :] & (offs_n[None, :] <= (before + token)[:, None])
        if WINDOWED:
            seen = seen & (offs_n[None, :] > (before + token - window)[:, None])
        scores = tl.where(seen, scores * _LOG2_E, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        pivot = tl.where(new_top == float("-inf"), 0.0, new_top)
        p = tl.exp2(scores - pivot[:, None])
        shrink = tl.exp2(top - pivot)
        total = total * shrink + tl.sum(p, 1)
        if INT8:
            p *= _scales(kv_scale_ptr, slot, G + kv_head, is_key, G)[None, :]
        acc = tl.dot(p.to(q.dtype), v, acc * shrink[:, None], input_precision="ieee")
        top = new_top
    acc = acc / tl.where(total == 0, 1.0, total)[:, None]
    where = number * H + head
    if SPLIT:
        where = where * splits + split
        tl.store(lse_ptr + where, top + tl.log2(tl.where(total == 0, 1.0, total)), mask=is_row)
    tl.store(
        out_ptr + where[:, None] * D + offs_d[None, :], acc.to(out_ptr.dtype.element_ty), mask=wide
    )


@triton.jit
def _merge_kernel(
    partial_ptr, lse_ptr, context_lens, cu_new, out_ptr, num_seqs, split_len, H, splits,
    D: tl.constexpr, BD: tl.constexpr, SEARCH: tl.constexpr,
):  # fmt: skip
    token, head = tl.program_id(0), tl.program_id(1)
    low, high = 0, num_seqs
    for _ in range(SEARCH):
        middle = (low + high) // 2
        begins = tl.load(cu_new + middle)
        low = tl.where(begins <= token, middle, low)
        high = tl.where(begins <= token, high, middle)
    new_len = tl.load(cu_new + low + 1) - tl.load(cu_new + low)
    position = tl.load(context_lens + low) - new_len + token - tl.load(cu_new + low)
    offs_d = tl.arange(0, BD)
    where = token.to(tl.int64) * H + head
    acc = tl.zeros([BD], tl.float32)
    top = tl.full([], float("-inf"), tl.float32)
    total = tl.zeros([], tl.float32)
    for split in range(tl.minimum(splits, position // split_len + 1)):
        lse = tl.load(lse_ptr + where * splits + split)
        part = tl.load(
            partial_ptr + (where * splits + split) * D + offs_d, mask=offs_d < D, other=0.0
        )
        new_top = tl.maximum(top, lse)
        pivot = tl.where(new_top == float("-inf"), 0.0, new_top)
        shrink, weight = tl.exp2(top - pivot), tl.exp2(lse - pivot)
        acc = acc * shrink + part * weight
        total = total * shrink + weight
        top = new_top
    out = acc / tl.where(total == 0, 1.0, total)
    tl.store(out_ptr + where * D + offs_d, out.to(out_ptr.dtype.element_ty), mask=offs_d < D)


@triton.jit
def _write_kv_kernel(
    cache_ptr, kv_scale_ptr, slots_ptr, k_ptr, v_ptr, c_slot, c_kv, c_g, k_t, k_g, k_d,
    v_t, v_g, v_d,
    G: tl.constexpr, D: tl.constexpr, BH: tl.constexpr, BD: tl.constexpr, INT8: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token)
    if slot < 0:
        return
    number = tl.arange(0, BH)  # the key heads, then the value heads
    is_value, head = number // G, number % G
    offs_d = tl.arange(0, BD)
    inside = (number < 2 * G)[:, None] & (offs_d < D)[None, :]
    k = tl.load(
        k_ptr + token * k_t + head[:, None] * k_g + offs_d[None, :] * k_d,
        mask=inside & (is_value == 0)[:, None], other=0.0,
    )  # fmt: skip
    v = tl.load(
        v_ptr + token * v_t + head[:, None] * v_g + offs_d[None, :] * v_d,
        mask=inside & (is_value == 1)[:, None], other=0.0,
    )  # fmt: skip
    x = tl.where((is_value == 1)[:, None], v, k)
    places = cache_ptr + slot * c_slot + (is_value * c_kv + head * c_g)[:, None] + offs_d[None, :]
    if INT8:
        x = x.to(tl.float32)
        scale, inverse = int8_scale(x, 1)
        tl.store(places, round_to_int8(x * inverse[:, None]), mask=inside)
        tl.store(kv_scale_ptr + slot * (2 * G) + number, scale, mask=number < 2 * G)
    else:
        tl.store(places, x.to(cache_ptr.dtype.element_ty), mask=inside)
