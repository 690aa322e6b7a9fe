"""Linear layers whose weights are laid out once for the CPU's products, at any number of rows.

Weights are words of 4 bytes along `in` (a float32, two bfloat16 or four int8), in blocks of 16
outputs, [word][output]: vectors and matrix units read them from first to last. Sums are float32
(int32 of int8 weights), and a row's result does not depend on the other rows. `float32` and
`bfloat16` keep the weights as they are. `int8` rounds them, a scale for each output, and takes the
activations as 16-bit whole numbers of their row's scale, in two digits, so that the products are
whole numbers; `int8-dynamic` rounds the activations to 8 bits. `int4` keeps groups of 32 weights
with a scale each, and multiplies them as bfloat16. Not here: training, GPUs.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.kernels.int4 import quantize_groups
from llmlab.kernels.int8 import quantize_rows_twin
from llmlab.kernels.native import NativeFunction, address, empty, native_function
from llmlab.kernels.op import ENABLED

Scheme = Literal["stored", "int8", "int8-dynamic", "int4"]
"""How weights are kept: in their own dtype, or rounded to int8 or int4."""

_BLOCK = 16
_TILE_WORDS = 16
_GROUP = 32
_DIGITS = {"int8": 2, "int8-dynamic": 1}


def can_pack(weight: Tensor) -> bool:
    """Return whether a weight can be packed here: on a CPU with a compiler, no twins wanted."""
    return ENABLED and weight.device.type == "cpu" and _function(weight.dtype, "stored") is not None


class PackedLinear(nn.Module):
    """`x @ weight.T + bias`, with a packed copy of the weight.

    Args:
        weight: (out, in), float32 or bfloat16, for which `can_pack` holds.
        bias: (out,) or None.
        scheme: how the weight is kept.
        gate: (out, in) or None: the result is then `silu(x @ gate.T) * (x @ weight.T)`, without a
            bias.
        is_wide: whether the result is float32, for logits.
    """

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        scheme: Scheme = "stored",
        gate: Tensor | None = None,
        is_wide: bool = False,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.dtype = weight.dtype
        self.scheme: Scheme = scheme
        self.is_gated = gate is not None
        self.out_dtype = torch.float32 if is_wide else weight.dtype
        blocks = _blocks(weight.detach(), 1 if gate is not None else 2)
        if gate is not None:
            gates = _blocks(gate.detach(), 1)
            blocks = torch.stack((gates, blocks), dim=1).flatten(0, 1)  # a gate before each block
        scale = None
        if scheme == "stored":
            words = _words(blocks, 4 // blocks.dtype.itemsize)
        elif scheme == "int4":
            words, scale = _int4(blocks)
        else:
            numbers, scale = quantize_rows_twin(blocks.flatten(0, 1))
            words = _words(numbers.view(blocks.shape), 4)
        self.register_buffer("weight", words, persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        bias = None if bias is None else bias.detach().float()
        self.register_buffer("bias", bias, persistent=False)
        function = _function(weight.dtype, scheme, is_wide=is_wide)
        assert function is not None, "the caller asks can_pack first"
        self._function = function

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out), of the weight's dtype, or float32 when wide."""
        if x.dtype != self.dtype or x.shape[-1] != self.in_features:
            raise ValueError(
                f"x is {tuple(x.shape)} {x.dtype}; this layer takes (..., {self.in_features}) "
                f"{self.dtype}"
            )
        x = x.contiguous()
        out = empty((*x.shape[:-1], self.out_features), self.out_dtype)
        M = x.numel() // self.in_features
        sizes = (M, self.out_features, self.in_features, self.is_gated)
        scale = () if self.scale is None else (address(self.scale),)
        digits = (_DIGITS[self.scheme],) if self.scheme in _DIGITS else ()
        self._function(
            address(out), address(x), address(self.weight), *scale, address(self.bias), *sizes,
            *digits,
        )  # fmt: skip
        return out

    def extra_repr(self) -> str:
        """Return what `print` shows of the layer."""
        gated = ", is_gated=True" if self.is_gated else ""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"scheme={self.scheme}{gated}"
        )


_KINDS = {
    "stored": ("", "ppppiiii"),
    "int8": ("_int8", "pppppiiiii"),
    "int8-dynamic": ("_int8", "pppppiiiii"),
    "int4": ("_int4", "pppppiiii"),
}
"""Of each scheme: the function's name, and what it takes."""


def _function(
    dtype: torch.dtype, scheme: Scheme, *, is_wide: bool = False
) -> NativeFunction | None:
    kind, arguments = _KINDS[scheme]
    wide = "_wide" if is_wide and dtype != torch.float32 else ""
    return native_function(f"packed_linear{kind}{wide}", dtype, arguments)


def _blocks(weight: Tensor, multiple: int) -> Tensor:
    """Cut (out, in) into (blocks, 16, in), a multiple of so many blocks, zeros last."""
    rows = F.pad(weight, (0, 0, 0, -len(weight) % (_BLOCK * multiple)))
    return rows.view(-1, _BLOCK, weight.shape[1])


def _words(blocks: Tensor, per_word: int) -> Tensor:
    """Lay (blocks, 16, in) out as (blocks, words, 16, numbers of a word), zeros last."""
    padded = F.pad(blocks, (0, -blocks.shape[2] % (_TILE_WORDS * per_word)))
    words = padded.unflatten(2, (-1, per_word))  # (blocks, 16, words, numbers)
    return words.transpose(1, 2).contiguous()


def _int4(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Round (blocks, 16, in) to bytes (blocks, words, 16) and scales (blocks, groups, 16)."""
    padded = F.pad(blocks, (0, -blocks.shape[2] % _GROUP)).flatten(0, 1)  # (out, in)
    packed, scale = quantize_groups(padded, _GROUP)  # (out, in / 2), (out, groups)
    numbers, scales = (x.view(-1, _BLOCK, x.shape[1]).transpose(1, 2) for x in (packed, scale))
    return numbers.contiguous(), scales.contiguous()
