"""Linear layers that keep their weights as int8 or int4, and `quantize_`, which makes them.

Weights are rounded without data to see: int8 with a scale for each row, int4 with one for
each group of a row. Embeddings, norms and what is skipped stay as they are. Gradients flow to the
activations, not to the weights. Not here: files.
"""

from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from llmlab.kernels.int4 import quantize_groups, w4a16_linear
from llmlab.kernels.int8 import int8_linear, quantize_rows_twin, w8a16_linear

Scheme = Literal["int8", "int8-dynamic", "int4"]
"""`int8`: weights (W8A16). `int8-dynamic`: of many rows the activations too (W8A8).
`int4`: weights (W4A16)."""

Model = TypeVar("Model", bound=nn.Module)

GROUP_SIZE = 32
"""Weights that share a scale in int4."""


class Int8Linear(nn.Module):
    """`x @ weight.T + bias` with int8 weights.

    Args:
        weight: (out, in), floating.
        bias: (out,) or None.
        is_dynamic: whether many rows of activations are rounded to int8 as well.
    """

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, is_dynamic: bool) -> None:
        super().__init__()
        rounded, scale = quantize_rows_twin(weight.detach())
        self.register_buffer("weight", rounded)  # (out, in), int8
        self.register_buffer("weight_scale", scale)  # (out,), float32
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.is_dynamic = is_dynamic

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out), dtype of x."""
        if self.is_dynamic:
            return int8_linear(x, self.weight, self.weight_scale, self.bias)
        out = w8a16_linear(x.reshape(-1, x.shape[-1]), self.weight, self.weight_scale)
        return _shaped(out, x, self.bias)

    def extra_repr(self) -> str:
        """Return what `print` shows of the layer."""
        return f"{_sizes(self.weight)}, is_dynamic={self.is_dynamic}"


class Int4Linear(nn.Module):
    """`x @ weight.T + bias` with int4 weights.

    Args:
        weight: (out, in), floating.
        bias: (out,) or None.
        group_size: weights that share a scale; even, and divides `in`.

    Raises:
        ValueError: group_size does not fit.
    """

    weight_packed: Tensor
    weight_scale: Tensor

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, *, group_size: int = GROUP_SIZE
    ) -> None:
        super().__init__()
        packed, scale = quantize_groups(weight.detach(), group_size)
        self.register_buffer("weight_packed", packed)  # (out, in / 2), uint8
        self.register_buffer("weight_scale", scale)  # (out, in / group_size), float32
        self.register_buffer("bias", None if bias is None else bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out), dtype of x."""
        out = w4a16_linear(x.reshape(-1, x.shape[-1]), self.weight_packed, self.weight_scale)
        return _shaped(out, x, self.bias)

    def extra_repr(self) -> str:
        """Return what `print` shows of the layer."""
        out, half = self.weight_packed.shape
        return f"in_features={2 * half}, out_features={out}, groups={self.weight_scale.shape[1]}"


def quantize_(
    model: Model, scheme: Scheme = "int8", *, skip: Sequence[str] = ("lm_head",)
) -> Model:
    """Put quantised layers in place of a model's `nn.Linear`; the plain weights are freed.

    Args:
        model: changed in place.
        scheme: how weights and activations are kept.
        skip: layers that stay: the last part of a name, or a whole name with its dots.

    Returns:
        The model.

    Raises:
        ValueError: an unknown scheme, or a layer that int4's groups do not fit. Nothing has changed
            then.
    """
    if scheme not in ("int8", "int8-dynamic", "int4"):
        raise ValueError(f"scheme={scheme!r}; it must be int8, int8-dynamic or int4")
    chosen = {
        name: child
        for name, child in model.named_modules()
        if type(child) is nn.Linear and name not in skip and name.rpartition(".")[2] not in skip
    }
    if scheme == "int4":
        for name, child in chosen.items():
            if child.in_features % GROUP_SIZE:
                raise ValueError(
                    f"{name} has rows of {child.in_features}, no multiple of {GROUP_SIZE} as int4 "
                    f"wants; skip it, or take int8"
                )
    for name, child in chosen.items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, _quantized(child, scheme))
    return model


@torch.no_grad()
def _quantized(linear: nn.Linear, scheme: Scheme) -> nn.Module:
    if scheme == "int4":
        return Int4Linear(linear.weight, linear.bias)
    return Int8Linear(linear.weight, linear.bias, is_dynamic=scheme == "int8-dynamic")


def _shaped(out: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    out = out.view(*x.shape[:-1], out.shape[1])
    return out if bias is None else out + bias


def _sizes(weight: Tensor) -> str:
    return f"in_features={weight.shape[1]}, out_features={weight.shape[0]}"
