"""Running the layers of a model one after the other, their activations kept or computed again.

With recomputation a layer keeps only its input for the backward pass, which runs it a second time:
a third more arithmetic for a fraction of the memory. Source: arXiv:1604.06174.
"""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def run_layer(layer: nn.Module, *inputs: Any, recompute: bool) -> Any:
    """Return `layer(*inputs)`.

    Args:
        layer: draws no random numbers.
        inputs: whatever the layer takes.
        recompute: keep only the inputs for the backward pass, where there will be one.
    """
    if not (recompute and torch.is_grad_enabled()):
        return layer(*inputs)
    return checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)
