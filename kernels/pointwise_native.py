"""SwiGLU, rotations, sums and rows of tables on a CPU, in C++."""

from torch import Tensor

from llmlab.kernels.native import address, empty, native_function


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Run; see pointwise.py."""
    function = native_function("swiglu", gate.dtype, "pppi")
    if function is None:
        return NotImplemented
    gate, up = gate.contiguous(), up.contiguous()
    out = empty(gate.shape, gate.dtype)
    function(address(out), address(gate), address(up), gate.numel())
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Run; see pointwise.py. One row of tokens: B = 1."""
    B, H, T, D = x.shape
    function = native_function("rotate", x.dtype, "ppppiiiii")
    if function is None or B != 1 or x.stride(3) != 1 or cos.dtype != x.dtype or D % 2:
        return NotImplemented
    cos, sin = cos.contiguous(), sin.contiguous()
    out = empty((1, T, H, D), x.dtype)
    function(
        address(out), address(x), address(cos), address(sin), T, H, D, x.stride(2), x.stride(1)
    )
    return out.transpose(1, 2)


def add(a: Tensor, b: Tensor) -> Tensor:
    """Return a + b, both dense and of one shape and dtype."""
    function = native_function("add", a.dtype, "pppi")
    if function is None or a.shape != b.shape or a.dtype != b.dtype:
        return NotImplemented
    if not (a.is_contiguous() and b.is_contiguous()):
        return NotImplemented
    out = empty(a.shape, a.dtype)
    function(address(out), address(a), address(b), a.numel())
    return out


def embed(table: Tensor, ids: Tensor) -> Tensor:
    """Return rows of a table.

    Args:
        table: (V, E), dense.
        ids: int64, dense, any shape.

    Returns:
        The shape of ids, then E.
    """
    function = native_function("embed", table.dtype, "pppii")
    if function is None or not (table.is_contiguous() and ids.is_contiguous()):
        return NotImplemented
    E = table.shape[1]
    out = empty((*ids.shape, E), table.dtype)
    function(address(out), address(table), address(ids), ids.numel(), E)
    return out
