"""Triton kernel of sampling: a program chooses the token of a row, without sorting it.

What a filter keeps is all above a threshold. It is found by bisection over the bits of float32,
eight parts at a time, so that it is exact after ten readings of the row, which stays in the cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048


def sample_tokens(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, draw: Tensor
) -> Tensor:
    """Launch; see sample.py."""
    B, V = logits.shape
    out = torch.empty(B, dtype=torch.int64, device=logits.device)
    _sample_kernel[(B,)](
        logits, temperature, top_k, top_p, min_p, draw, out, V, *logits.stride(),
        BLOCK=min(_BLOCK, triton.next_power_of_2(V)), num_warps=8,
    )  # fmt: skip
    return out


@triton.jit
def _parts(logits_ptr, first, V, col_stride, top, temperature, BLOCK: tl.constexpr):
    """Load a block as parts of the likeliest token's probability; 0 beyond the row."""
    at = first + tl.arange(0, BLOCK)
    x = tl.load(logits_ptr + at * col_stride, mask=at < V, other=float("-inf")).to(tl.float32)
    return at, tl.exp((x - top) / temperature)


@triton.jit
def _threshold(
    logits_ptr, V, col_stride, top, temperature, least, wanted, COUNTS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the largest part such that as many (or so much) as wanted is not below it.

    Only parts that are not below `least` count.
    """
    low = tl.zeros([], tl.int32)
    high = low + 0x3F800001  # the bits of 0 and of what comes after 1
    eight = tl.arange(0, 8)
    while high - low > 1:
        step = tl.maximum((high - low) // 8, 1)
        bits = low + step * eight
        pivots = tl.maximum(bits.to(tl.float32, bitcast=True), least)
        found = tl.zeros([8], tl.float32)
        for first in range(0, V, BLOCK):
            at, parts = _parts(logits_ptr, first, V, col_stride, top, temperature, BLOCK)
            is_kept = (parts[:, None] >= pivots[None, :]) & (at < V)[:, None]
            amount = tl.where(is_kept, 1.0 if COUNTS else parts[:, None], 0.0)
            found += tl.sum(amount, 0)
        # The first pivot is `low`, which is known to hold enough; so many more hold it too.
        more = tl.sum(((found >= wanted) & (eight > 0) & (bits < high)).to(tl.int32), 0)
        high = tl.minimum(high, low + step * (more + 1)) if more < 7 else high
        low += step * more
    return tl.maximum(low.to(tl.float32, bitcast=True), least)


@triton.jit
def _mass(logits_ptr, V, col_stride, top, temperature, least, BLOCK: tl.constexpr):
    total = 0.0
    for first in range(0, V, BLOCK):
        _, parts = _parts(logits_ptr, first, V, col_stride, top, temperature, BLOCK)
        total += tl.sum(tl.where(parts >= least, parts, 0.0), 0)
    return total


@triton.jit
def _sample_kernel(
    logits_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, draw_ptr, out_ptr, V, row_stride,
    col_stride, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    logits_ptr += row.to(tl.int64) * row_stride
    top = float("-inf")
    chosen = tl.zeros([], tl.int32)
    for first in range(0, V, BLOCK):
        at = first + tl.arange(0, BLOCK)
        x = tl.load(logits_ptr + at * col_stride, mask=at < V, other=float("-inf")).to(tl.float32)
        best, place = tl.max(x, 0, return_indices=True)
        chosen = tl.where(best > top, first + place, chosen)
        top = tl.maximum(top, best)
    temperature = tl.load(temperature_ptr + row)
    if temperature > 0:
        least = tl.load(min_p_ptr + row)
        top_k = tl.load(top_k_ptr + row)
        top_p = tl.load(top_p_ptr + row)
        kept = 0.0
        if (top_k > 0) & (top_k < V):
            kept = _threshold(
                logits_ptr, V, col_stride, top, temperature, 0.0, top_k.to(tl.float32), True, BLOCK
            )
        if top_p < 1:
            wanted = top_p * _mass(logits_ptr, V, col_stride, top, temperature, kept, BLOCK)
            kept = _threshold(
                logits_ptr, V, col_stride, top, temperature, kept, wanted, False, BLOCK
            )
        least = tl.maximum(least, kept)
        total = _mass(logits_ptr, V, col_stride, top, temperature, least, BLOCK)
        wanted = tl.load(draw_ptr + row) * total
        before = 0.0
        is_found = 0
        for first in range(0, V, BLOCK):
            at, parts = _parts(logits_ptr, first, V, col_stride, top, temperature, BLOCK)
            parts = tl.where(parts >= least, parts, 0.0)
            reached = before + tl.cumsum(parts, 0)
            # The last one kept is taken where rounding leaves the sum below what is wanted.
            hits = (parts > 0) & (reached > wanted) & (at < V)
            hit = tl.min(tl.where(hits, at, V), 0)
            last = tl.max(tl.where((parts > 0) & (at < V), at, -1), 0)
            if is_found == 0:
                if hit < V:
                    chosen = hit
                    is_found = 1
                elif last >= 0:
                    chosen = last
            before += tl.sum(parts, 0)
    tl.store(out_ptr + row, chosen.to(tl.int64))
