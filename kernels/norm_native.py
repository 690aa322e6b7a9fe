"""RMSNorm on a CPU, in C++."""

from math import prod

from torch import Tensor

from llmlab.kernels.native import address, empty, native_function
from llmlab.kernels.precision import wide_dtype


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Run; see norm.py."""
    function = native_function("rms_norm", x.dtype, "ppppfiiii")
    if function is None or weight.dtype != x.dtype or not weight.is_contiguous():
        return NotImplemented
    outer, stride, inner = _rows(x)
    if outer is None:
        x = x.contiguous()
        outer, stride, inner = prod(x.shape[:-1]), x.shape[-1], 1
    out, scale = empty(x.shape, x.dtype), empty(x.shape[:-1], wide_dtype(x))
    function(
        address(out), address(scale), address(x), address(weight), eps,
        outer, stride, inner, x.shape[-1],
    )  # fmt: skip
    return out, scale


def _rows(x: Tensor) -> tuple[int | None, int, int]:
    """Return rows, numbers from one to the next, and dense pieces a row; None where x has none."""
    E = x.shape[-1]
    if x.is_contiguous():
        return prod(x.shape[:-1]), E, 1
    is_cut = x.dim() == 4 and x.shape[0] == 1 and x.stride()[2:] == (E, 1)  # heads of a wider row
    return (x.shape[1], x.stride(1), x.shape[2]) if is_cut else (None, 0, 0)
