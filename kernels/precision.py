"""In which dtype products are computed. Not here: which one pays (llmlab/hardware)."""

import torch
from torch import Tensor


def wide_dtype(x: Tensor) -> torch.dtype:
    """Return what sums over numbers such as x are in: float32, or float64 where they are."""
    return torch.promote_types(x.dtype, torch.float32)


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype autocast gives a product with `x`: its own where autocast is off."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
