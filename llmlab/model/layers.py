"""What layers keep for the backward pass: their activations, or only their input.

A layer whose activations are computed again keeps a fraction of the memory, for a third more
arithmetic. Source: arXiv:1604.06174.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Result = TypeVar("Result")


def kept_or_recomputed(
    compute: Callable[[Tensor], Result], x: Tensor, *, recompute: bool
) -> Result:
    """Return `compute(x)`.

    Called inside a layer, so that what is compiled or sharded around the layer sees one call.

    Args:
        compute: draws no random numbers.
        x: the only thing kept when activations are computed again, apart from what `compute` holds.
        recompute: run `compute` a second time in the backward pass, where there will be one.
    """
    if not (recompute and torch.is_grad_enabled()):
        return compute(x)
    return checkpoint(compute, x, use_reentrant=False, preserve_rng_state=False)
