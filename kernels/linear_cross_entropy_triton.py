"""Triton kernel of cross-entropy: a row of logits becomes its loss and, in place, its gradient.

A program reads its row twice, once for the running maximum and sum, once for the gradient; the
second time it comes from the cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmlab.kernels.common_triton import accumulator, warps_of_row
from llmlab.kernels.precision import wide_dtype

_MOST = 16384
"""Logits a program holds at once."""


def cross_entropy(
    logits: Tensor, labels: Tensor, ignore_index: int, softcap: float, z_loss: float
) -> Tensor:
    """Launch; see linear_cross_entropy.py."""
    num_rows, vocab_size = logits.shape
    wide = wide_dtype(logits)
    loss = torch.empty(labels.shape, dtype=wide, device=logits.device)
    block = min(_MOST, triton.next_power_of_2(vocab_size))
    _cross_entropy_kernel[(num_rows,)](
        logits, labels, loss, vocab_size, *logits.stride(), labels.stride(0), ignore_index,
        softcap, z_loss, CAPPED=softcap > 0, BLOCK=block,
        WIDE=accumulator(wide),
        num_warps=warps_of_row(block),
    )  # fmt: skip
    return loss


@triton.jit
def _capped(x, softcap, CAPPED: tl.constexpr):
    """Return the logits and the slope of their cap."""
    slope = 1.0
    if CAPPED:
        tanh = 2 * tl.sigmoid(2 * x / softcap) - 1
        x = softcap * tanh
        slope = 1 - tanh * tanh
    return x, slope


@triton.jit
def _cross_entropy_kernel(
    logits_ptr, labels_ptr, loss_ptr, vocab_size, row_stride, col_stride, label_stride,
    ignore_index, softcap, z_loss, CAPPED: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels_ptr + row * label_stride)
    is_scored = label != ignore_index
    logits_ptr += row * row_stride
    offsets = tl.arange(0, BLOCK)
    highest = tl.full([BLOCK], float("-inf"), WIDE)  # of each lane: the lanes meet once, at the end
    total = tl.zeros([BLOCK], WIDE)
    for first in range(0, vocab_size, BLOCK):
        at = first + offsets
        x = tl.load(
            logits_ptr + at * col_stride, mask=at < vocab_size, other=float("-inf")
        ).to(WIDE)  # fmt: skip
        x, _ = _capped(x, softcap, CAPPED)
        x = tl.where(at < vocab_size, x, float("-inf"))
        new_highest = tl.maximum(highest, x)
        pivot = tl.where(new_highest == float("-inf"), 0.0, new_highest)
        total = total * tl.exp(highest - pivot) + tl.exp(x - pivot)
        highest = new_highest
    top = tl.max(highest, 0)
    sums = tl.sum(total * tl.exp(highest - top), 0)
    normaliser = top + tl.log(sums)
    wanted = tl.load(logits_ptr + label * col_stride, mask=is_scored, other=0.0).to(WIDE)
    wanted, _ = _capped(wanted, softcap, CAPPED)
    tl.store(loss_ptr + row, tl.where(is_scored, normaliser - wanted, 0.0))
    scale = tl.where(is_scored, (1 + 2 * z_loss * normaliser) / sums, 0.0)
    for first in range(0, vocab_size, BLOCK):
        at = first + offsets
        inside = at < vocab_size
        x = tl.load(logits_ptr + at * col_stride, mask=inside, other=0.0).to(WIDE)
        x, slope = _capped(x, softcap, CAPPED)
        gradient = tl.exp(x - top) * scale - tl.where((at == label) & is_scored, 1.0, 0.0)
        gradient = (gradient * slope).to(logits_ptr.dtype.element_ty)
        tl.store(logits_ptr + at * col_stride, gradient, mask=inside)
