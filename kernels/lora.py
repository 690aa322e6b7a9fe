"""Low-rank adapters of several requests in one batch. Sources: arXiv:2106.09685, arXiv:2310.18547.

    rows, starts = group_by_adapter(adapter, len(down))      # once a step
    add_lora_(out, x, down, up, scale, rows, starts)           # once a linear layer

Rows with the same adapter are multiplied together; what is written does not depend on the others.
"""

from itertools import pairwise

import torch
from torch import Tensor

from llmlab.kernels.op import define


def group_by_adapter(adapter: Tensor, num_adapters: int) -> tuple[Tensor, Tensor]:
    """Order rows by their adapter.

    Args:
        adapter: (N,), int64, the number of each row's adapter; -1 for none.
        num_adapters: L.

    Returns:
        The rows that have an adapter, adapter after adapter, (N,) int64, followed by those without;
        and where each adapter's rows start, with their end last, (L + 1,) int32.
    """
    none = num_adapters
    number = torch.where(adapter < 0, none, adapter)
    rows = number.argsort(stable=True)
    bounds = torch.arange(num_adapters + 1, device=adapter.device)
    starts = torch.searchsorted(number[rows], bounds)
    return rows, starts.int()


def add_lora_(
    out: Tensor,
    x: Tensor,
    down: Tensor,
    up: Tensor,
    scale: Tensor,
    rows: Tensor,
    starts: Tensor,
    ranks: Tensor | None = None,
) -> Tensor:
    """Add to each row the product with its adapter's two matrices; sums are in float32.

    Args:
        out: (N, O), changed in place; its rows are dense, and may be parts of wider ones.
        x: (N, I).
        down: (L, R, I), contiguous; adapters of a lower rank are filled up with zeros.
        up: (L, O, R); on a CPU best the transpose of a contiguous (L, R, O).
        scale: (L,), float32, of each product.
        rows: from `group_by_adapter`.
        starts: from `group_by_adapter`.
        ranks: (L,), int32: the rank of each adapter, 0 for one that adds nothing; what is behind
            it then need not be read. R for all when None.

    Returns:
        out.
    """
    _add_lora(out, x, down, up, scale, rows, starts, ranks)
    return out


def add_lora_twin(
    out: Tensor,
    x: Tensor,
    down: Tensor,
    up: Tensor,
    scale: Tensor,
    rows: Tensor,
    starts: Tensor,
    ranks: Tensor | None = None,
) -> None:
    """Compute `add_lora_` in plain PyTorch, an adapter at a time."""
    bounds = starts.tolist()
    for number, (first, last) in enumerate(pairwise(bounds)):
        if first == last:
            continue
        mine = rows[first:last]
        narrow = x[mine].float() @ down[number].float().t()  # (n, R)
        added = scale[number] * (narrow @ up[number].float().t())  # (n, O)
        out[mine] = (out[mine].float() + added).to(out.dtype)


def _fake(*_: Tensor | None) -> None:
    return None


_add_lora = define(
    "add_lora(Tensor(a!) out, Tensor x, Tensor down, Tensor up, Tensor scale, Tensor rows, "
    "Tensor starts, Tensor? ranks) -> ()",
    twin=add_lora_twin,
    fake=_fake,
    kernel="lora_triton:add_lora",
    native="lora_native:add_lora",
)
