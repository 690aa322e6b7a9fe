"""Triton kernels of attention: forward, gradient of the queries, gradient of keys and values.

One program holds a tile of query rows and walks over the keys (forward, dQ), or a tile of keys and
walks over the queries of all heads that share them (dK and dV). No two programs write the same
place, so results do not depend on their order. Scores are kept in base 2, for exp2 is what the
hardware has. Sources: arXiv:2205.14135, arXiv:2307.08691 (flash attention).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmlab.kernels.common_triton import accumulator
from llmlab.kernels.precision import wide_dtype
from llmlab.kernels.tiles import tile

_LOG2_E = tl.constexpr(1.4426950408889634)


def attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor | None,
    causal: bool,
    scale: float,
    window: int,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    """Launch; see attention.py."""
    (B, H, T, D), wide = q.shape, wide_dtype(q)
    q, k, v = (_with_dense_heads(x) for x in (q, k, v))
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(B, H, T, dtype=wide, device=q.device)
    BM, BN, num_warps, num_stages = _blocks("attention_forward", q)
    num_seqs = B if cu_seqlens is None else len(cu_seqlens) - 1
    _forward_kernel[(triton.cdiv(T, BM), num_seqs * H)](
        q, k, v, out, lse, cu_seqlens, T, H, scale, window, softcap,
        *_strides(q, k, v, out), GROUP=H // k.shape[1], BM=BM, BN=BN,
        num_warps=num_warps, num_stages=num_stages,
        **_constants(D, wide, cu_seqlens, causal, window, softcap),
    )  # fmt: skip
    return out, lse


def attention_backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor | None,
    causal: bool,
    scale: float,
    window: int,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch; see attention.py."""
    (B, H, T, D), G = q.shape, k.shape[1]
    q, k, v, out, d_out = (_with_dense_heads(x) for x in (q, k, v, out, d_out))
    d_q, d_k, d_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    delta = torch.empty_like(lse)
    constants = _constants(D, lse.dtype, cu_seqlens, causal, window, softcap)
    options = (cu_seqlens, T, H, scale, window, softcap)
    num_seqs = B if cu_seqlens is None else len(cu_seqlens) - 1
    BM, BN, num_warps, num_stages = _blocks("attention_backward_queries", q)
    _backward_queries_kernel[(triton.cdiv(T, BM), num_seqs * H)](
        q, k, v, out, d_out, lse, delta, d_q, *options, *_strides(q, k, v, out, d_out, d_q),
        GROUP=H // G, BM=BM, BN=BN, num_warps=num_warps, num_stages=num_stages, **constants,
    )  # fmt: skip
    BM, BN, num_warps, num_stages = _blocks("attention_backward_keys", q)
    _backward_keys_kernel[(triton.cdiv(T, BN), num_seqs * G)](
        q, k, v, d_out, lse, delta, d_k, d_v, *options, *_strides(q, k, v, d_out, d_k, d_v),
        GROUP=H // G, BM=BM, BN=BN, num_warps=num_warps, num_stages=num_stages, **constants,
    )  # fmt: skip
    return d_q, d_k, d_v


def _blocks(op: str, q: Tensor) -> tuple[int, ...]:
    """Return blocks of queries and keys no longer than needed, warps and stages."""
    BM, BN, num_warps, num_stages = tile(op, q, max(16, triton.next_power_of_2(q.shape[3])))
    longest = max(16, triton.next_power_of_2(q.shape[2]))
    return min(BM, longest), min(BN, longest), num_warps, num_stages


def _constants(
    D: int,
    wide: torch.dtype,
    cu_seqlens: Tensor | None,
    causal: bool,
    window: int,
    softcap: float,
) -> dict[str, object]:
    return {
        "D": D,
        "BD": max(16, triton.next_power_of_2(D)),
        "PACKED": cu_seqlens is not None,
        "CAUSAL": causal,
        "WINDOWED": window > 0,
        "CAPPED": softcap > 0,
        "ACC": accumulator(wide),
    }


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for x in tensors for stride in x.stride()[:3]]


def _with_dense_heads(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


@triton.jit
def _base2_scores(
    products, offs_m, offs_n, length, scale, window, softcap,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, CAPPED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Scale, cap and mask products; return the scores and the cap's tanh."""
    scores = products * scale
    tanh = scores
    if CAPPED:
        tanh = 2 * tl.sigmoid(2 * scores / softcap) - 1
        scores = softcap * tanh
    scores = scores * _LOG2_E
    if MASKED:
        seen = (offs_n < length) & (offs_m < length)
        if CAUSAL:
            seen = seen & (offs_n <= offs_m)
        if WINDOWED:
            seen = seen & (offs_n > offs_m - window)
        scores = tl.where(seen, scores, float("-inf"))
    return scores, tanh


@triton.jit
def _tile(base, offs_rows, stride_row, offs_d, length, D: tl.constexpr, BD: tl.constexpr):
    """Load rows (len(offs_rows), BD) of a head; zero beyond its length and width."""
    inside = offs_rows[:, None] < length
    if D < BD:
        inside = inside & (offs_d[None, :] < D)
    return tl.load(base + offs_rows[:, None] * stride_row + offs_d[None, :], mask=inside, other=0.0)


@triton.jit
def _span(cu_seqlens, seq, T, PACKED: tl.constexpr):
    """Return row, first position and length of a sequence."""
    if PACKED:
        start = tl.load(cu_seqlens + seq).to(tl.int64)
        return start // T, start % T, (tl.load(cu_seqlens + seq + 1) - start).to(tl.int32)
    else:  # noqa: RET505 - a branch of the compiler's, not of the program
        return seq.to(tl.int64), tl.zeros([], tl.int64), T


@triton.jit
def _walk_keys(
    acc, top, total, q, k_base, v_base, stride_k, stride_v, first, last, offs_m, offs_d,
    length, scale, window, softcap,
    D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr, CAPPED: tl.constexpr, MASKED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Add the keys of [first, last) to a running softmax."""
    for n in range(first, last, BN):
        offs_n = n + tl.arange(0, BN)
        k = _tile(k_base, offs_n, stride_k, offs_d, length, D, BD)
        v = _tile(v_base, offs_n, stride_v, offs_d, length, D, BD)
        products = tl.dot(q, tl.trans(k), input_precision="ieee", out_dtype=ACC)
        scores, _ = _base2_scores(
            products, offs_m[:, None], offs_n[None, :], length, scale, window, softcap,
            CAUSAL, WINDOWED, CAPPED, MASKED,
        )  # fmt: skip
        new_top = tl.maximum(top, tl.max(scores, 1))
        pivot = tl.where(new_top == float("-inf"), 0.0, new_top)  # rows that see none of these keys
        p = tl.exp2(scores - pivot[:, None])
        shrink = tl.exp2(top - pivot)
        total = total * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None]
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision="ieee", out_dtype=ACC)
        top = new_top
    return acc, top, total


@triton.jit
def _forward_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, cu_seqlens, T, H, scale, window, softcap,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, o_b, o_h, o_t,
    GROUP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PACKED: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, CAPPED: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Attend from BM queries of one head; grid (tiles, sequences x H)."""
    # The last tiles see most keys under the causal mask: they start first.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    seq, head = tl.program_id(1) // H, tl.program_id(1) % H
    row, at, length = _span(cu_seqlens, seq, T, PACKED)
    first_m = tile * BM
    if first_m >= length:
        return
    offs_m, offs_d = first_m + tl.arange(0, BM), tl.arange(0, BD)
    kv_head = head // GROUP
    k_base = k_ptr + row * k_b + kv_head.to(tl.int64) * k_h + at * k_t
    v_base = v_ptr + row * v_b + kv_head.to(tl.int64) * v_h + at * v_t
    q = _tile(
        q_ptr + row * q_b + head.to(tl.int64) * q_h + at * q_t, offs_m, q_t, offs_d, length, D, BD
    )
    acc = tl.zeros([BM, BD], ACC)
    top = tl.full([BM], float("-inf"), ACC)
    total = tl.zeros([BM], ACC)
    # Keys in [first, last) are seen by some row, those in [open, close) by every row.
    last = tl.minimum(length, first_m + BM) if CAUSAL else length
    close = (tl.minimum(length, first_m + 1) if CAUSAL else length) // BN * BN
    first, open_ = 0, 0
    if WINDOWED:
        first = tl.maximum(first_m - window + 1, 0) // BN * BN
        open_ = (tl.maximum(first_m + BM - window, 0) + BN - 1) // BN * BN
        open_ = tl.minimum(open_, last)
        close = tl.maximum(close, open_)
        acc, top, total = _walk_keys(
            acc, top, total, q, k_base, v_base, k_t, v_t, first, open_, offs_m, offs_d,
            length, scale, window, softcap, D, BD, BN, CAUSAL, WINDOWED, CAPPED, True, ACC,
        )  # fmt: skip
    acc, top, total = _walk_keys(
        acc, top, total, q, k_base, v_base, k_t, v_t, open_, close, offs_m, offs_d,
        length, scale, window, softcap, D, BD, BN, CAUSAL, WINDOWED, CAPPED, False, ACC,
    )  # fmt: skip
    acc, top, total = _walk_keys(
        acc, top, total, q, k_base, v_base, k_t, v_t, close, last, offs_m, offs_d,
        length, scale, window, softcap, D, BD, BN, CAUSAL, WINDOWED, CAPPED, True, ACC,
    )  # fmt: skip
    total = tl.where(total == 0, 1.0, total)
    inside = offs_m < length
    wide = inside[:, None] & (offs_d[None, :] < D)
    out = out_ptr + row * o_b + head.to(tl.int64) * o_h + (at + offs_m[:, None]) * o_t + offs_d
    tl.store(out, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask=wide)
    lse = lse_ptr + (row * H + head) * T + at + offs_m
    tl.store(lse, top + tl.log2(total), mask=inside)


@triton.jit
def _gradient_of_scores(
    q, k, v, d_out, lse, delta, offs_m, offs_n, length, scale, window, softcap,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, CAPPED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Return weights and the gradient of the raw products, both (BM, BN)."""
    products = tl.dot(q, tl.trans(k), input_precision="ieee", out_dtype=ACC)
    scores, tanh = _base2_scores(
        products, offs_m[:, None], offs_n[None, :], length, scale, window, softcap,
        CAUSAL, WINDOWED, CAPPED, True,
    )  # fmt: skip
    p = tl.exp2(scores - lse[:, None])
    dp = tl.dot(d_out, tl.trans(v), input_precision="ieee", out_dtype=ACC)
    ds = p * (dp - delta[:, None])
    if CAPPED:
        ds = ds * (1 - tanh * tanh)
    return p, ds


@triton.jit
def _backward_queries_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, d_out_ptr, lse_ptr, delta_ptr, d_q_ptr, cu_seqlens, T, H,
    scale, window, softcap,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, o_b, o_h, o_t, do_b, do_h, do_t,
    dq_b, dq_h, dq_t,
    GROUP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PACKED: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, CAPPED: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Gradient of BM queries, and their delta = sum(out * d_out); grid (tiles, sequences x H)."""
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    seq, head = tl.program_id(1) // H, tl.program_id(1) % H
    row, at, length = _span(cu_seqlens, seq, T, PACKED)
    first_m = tile * BM
    if first_m >= length:
        return
    offs_m, offs_d = first_m + tl.arange(0, BM), tl.arange(0, BD)
    head64, kv_head = head.to(tl.int64), (head // GROUP).to(tl.int64)
    k_base = k_ptr + row * k_b + kv_head * k_h + at * k_t
    v_base = v_ptr + row * v_b + kv_head * v_h + at * v_t
    q = _tile(q_ptr + row * q_b + head64 * q_h + at * q_t, offs_m, q_t, offs_d, length, D, BD)
    out = _tile(out_ptr + row * o_b + head64 * o_h + at * o_t, offs_m, o_t, offs_d, length, D, BD)
    d_out = _tile(
        d_out_ptr + row * do_b + head64 * do_h + at * do_t, offs_m, do_t, offs_d, length, D, BD
    )
    delta = tl.sum(out.to(ACC) * d_out.to(ACC), 1)
    inside = offs_m < length
    number = (row * H + head) * T + at + offs_m
    tl.store(delta_ptr + number, delta, mask=inside)
    lse = tl.load(lse_ptr + number, mask=inside, other=0.0)
    first = tl.maximum(first_m - window + 1, 0) // BN * BN if WINDOWED else 0
    last = tl.minimum(length, first_m + BM) if CAUSAL else length
    acc = tl.zeros([BM, BD], ACC)
    for n in range(first, last, BN):
        offs_n = n + tl.arange(0, BN)
        k = _tile(k_base, offs_n, k_t, offs_d, length, D, BD)
        v = _tile(v_base, offs_n, v_t, offs_d, length, D, BD)
        _, ds = _gradient_of_scores(
            q, k, v, d_out, lse, delta, offs_m, offs_n, length, scale, window, softcap,
            CAUSAL, WINDOWED, CAPPED, ACC,
        )  # fmt: skip
        acc = tl.dot(ds.to(k.dtype), k, acc, input_precision="ieee", out_dtype=ACC)
    wide = inside[:, None] & (offs_d[None, :] < D)
    d_q = d_q_ptr + row * dq_b + head64 * dq_h + (at + offs_m[:, None]) * dq_t + offs_d[None, :]
    tl.store(d_q, (acc * scale).to(d_q_ptr.dtype.element_ty), mask=wide)


@triton.jit
def _backward_keys_kernel(
    q_ptr, k_ptr, v_ptr, d_out_ptr, lse_ptr, delta_ptr, d_k_ptr, d_v_ptr, cu_seqlens, T, H,
    scale, window, softcap,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, do_b, do_h, do_t,
    dk_b, dk_h, dk_t, dv_b, dv_h, dv_t,
    GROUP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PACKED: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, CAPPED: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Gradient of BN keys and values; grid (tiles, sequences x key/value heads)."""
    tile = tl.program_id(0)  # the first keys are seen by most queries
    G = H // GROUP
    seq, kv_head = tl.program_id(1) // G, (tl.program_id(1) % G).to(tl.int64)
    row, at, length = _span(cu_seqlens, seq, T, PACKED)
    first_n = tile * BN
    if first_n >= length:
        return
    offs_n, offs_d = first_n + tl.arange(0, BN), tl.arange(0, BD)
    k = _tile(k_ptr + row * k_b + kv_head * k_h + at * k_t, offs_n, k_t, offs_d, length, D, BD)
    v = _tile(v_ptr + row * v_b + kv_head * v_h + at * v_t, offs_n, v_t, offs_d, length, D, BD)
    d_k = tl.zeros([BN, BD], ACC)
    d_v = tl.zeros([BN, BD], ACC)
    first = first_n // BM * BM if CAUSAL else 0
    last = tl.minimum(length, first_n + BN + window - 1) if WINDOWED else length
    for member in range(GROUP):
        head = kv_head * GROUP + member
        q_base = q_ptr + row * q_b + head * q_h + at * q_t
        d_out_base = d_out_ptr + row * do_b + head * do_h + at * do_t
        number = (row * H + head) * T + at
        for m in range(first, last, BM):
            offs_m = m + tl.arange(0, BM)
            q = _tile(q_base, offs_m, q_t, offs_d, length, D, BD)
            d_out = _tile(d_out_base, offs_m, do_t, offs_d, length, D, BD)
            inside = offs_m < length
            lse = tl.load(lse_ptr + number + offs_m, mask=inside, other=0.0)
            delta = tl.load(delta_ptr + number + offs_m, mask=inside, other=0.0)
            p, ds = _gradient_of_scores(
                q, k, v, d_out, lse, delta, offs_m, offs_n, length, scale, window, softcap,
                CAUSAL, WINDOWED, CAPPED, ACC,
            )  # fmt: skip
            d_v = tl.dot(
                tl.trans(p).to(d_out.dtype), d_out, d_v, input_precision="ieee", out_dtype=ACC
            )
            d_k = tl.dot(tl.trans(ds).to(q.dtype), q, d_k, input_precision="ieee", out_dtype=ACC)
    wide = (offs_n < length)[:, None] & (offs_d[None, :] < D)
    places = at + offs_n[:, None]
    k_out = d_k_ptr + row * dk_b + kv_head * dk_h + places * dk_t + offs_d[None, :]
    v_out = d_v_ptr + row * dv_b + kv_head * dv_h + places * dv_t + offs_d[None, :]
    tl.store(k_out, (d_k * scale).to(d_k_ptr.dtype.element_ty), mask=wide)
    tl.store(v_out, d_v.to(d_v_ptr.dtype.element_ty), mask=wide)
