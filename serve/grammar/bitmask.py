"""Forbid tokens: a bitmask of what may come, put on logits."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor


def apply_bitmask(logits: Tensor, bitmask: Tensor, rows: Sequence[int] | None = None) -> None:
    """Set the logits of forbidden tokens to -inf, in place.

    Args:
        logits: (B, V) floating point; V may be padded beyond the bitmask, and the padding is
            forbidden.
        bitmask: (R, W) int32 on the device of the logits, bit i % 32 of word i // 32 is 1 where
            token i may come.
        rows: the row of `logits` that each row of `bitmask` is for; None when they are the same.
    """
    num_rows = len(logits) if rows is None else len(rows)
    if bitmask.dtype != torch.int32 or bitmask.shape[:-1] != (num_rows,):
        raise ValueError(
            f"bitmask is {bitmask.dtype} {tuple(bitmask.shape)} for {num_rows} rows of logits; "
            "it must be int32, a row for each"
        )
    if not num_rows:
        return
    V = logits.shape[1]
    bounds = _bounds(logits.device, logits.dtype)
    picked = bitmask.contiguous().view(torch.uint8).flatten().int()
    highest = bounds.index_select(0, picked).view(num_rows, -1)[:, :V]  # (R, 32 W at most)
    width = highest.shape[1]
    if rows is None:
        logits[:, :width].copy_(torch.minimum(logits[:, :width], highest))
        logits[:, width:] = -torch.inf
        return
    at = torch.tensor(rows, device=logits.device)
    chosen = logits.index_select(0, at)  # (R, V)
    torch.minimum(chosen[:, :width], highest, out=chosen[:, :width])
    chosen[:, width:] = -torch.inf
    logits.index_copy_(0, at, chosen)


@cache
def _bounds(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the highest logits that each byte of a bitmask leaves: (256, 8) of inf and -inf.

    Looking up bytes and taking the minimum is several times faster on a CPU than a fill under a
    mask of booleans.
    """
    byte = torch.arange(256)[:, None] >> torch.arange(8) & 1  # (256, 8)
    return torch.where(byte == 1, torch.inf, -torch.inf).to(device, dtype)
