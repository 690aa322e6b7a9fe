"""Linear layers whose weights are laid out once for the processor's bfloat16 instructions.

`F.linear` reorders a bfloat16 weight into oneDNN's blocks at every call, which costs more than the
product itself when few tokens meet many weights, as in decoding. Here the reordering is done once.
Values do not change; sums are float32 as before. Not here: float32, where reordering gains nothing
for single tokens, quantised weights, devices other than the CPU. Nothing here is differentiable.
"""

import torch
from torch import Tensor, nn

_TYPICAL_ROWS = 16
"""Rows the layout is chosen for; decoding has 1 to a few dozen, and any number works."""


def can_pack(weight: Tensor) -> bool:
    """Return whether this machine packs such a weight: bfloat16 on a CPU that multiplies it."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


class PackedLinear(nn.Module):
    """`x @ weight.T + bias` with a packed copy of the weight.

    Args:
        weight: (out, in), for which `can_pack` holds.
        bias: (out,) or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _TYPICAL_ROWS)
        self._bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out), bfloat16."""
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")


def pack_linears(module: nn.Module, packed: dict[int, PackedLinear] | None = None) -> None:
    """Replace every `nn.Linear` inside `module` that can be packed; the plain weights are freed.

    Args:
        module: changed in place.
        packed: layers that exist already, by the `id` of their plain weight, to be used again.
    """
    packed = {} if packed is None else packed
    for name, child in module.named_children():
        if type(child) is nn.Linear and can_pack(child.weight):
            known = packed.get(id(child.weight))
            setattr(module, name, known or PackedLinear(child.weight, child.bias))
        else:
            pack_linears(child, packed)
