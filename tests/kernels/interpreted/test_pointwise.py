import pytest
import torch

from llmlab.kernels.pointwise import rotate, rotate_twin, swiglu, swiglu_twin
from tests.kernels.guards import error, guarded, inside_nan

BOUNDS = {torch.float32: 2e-6, torch.float64: 1e-13, torch.float16: 1e-3, torch.bfloat16: 1e-2}


def angles(rows, length, width, dtype=torch.float32):
    turn = torch.randn(rows, 1, length, width // 2, dtype=dtype)
    both = torch.cat((turn, turn), -1)
    return both.cos(), both.sin()


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (2, 2049), (0, 4)])
@pytest.mark.parametrize("place", [lambda x: x, inside_nan])
def test_swiglu(shape, dtype, place):
    torch.manual_seed(0)
    gate, up, gradient = (place(torch.randn(shape, dtype=dtype)) for _ in range(3))
    leaves = gate.requires_grad_(), up.requires_grad_()
    with guarded():
        found = swiglu(gate, up)
        found = found, *torch.autograd.grad(found, leaves, gradient)
    expected = swiglu_twin(gate, up)
    expected = expected, *torch.autograd.grad(expected, leaves, gradient)
    assert all(error(*pair) <= BOUNDS[dtype] for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(
    ("shape", "rows"), [((1, 1, 1, 2), 1), ((2, 3, 17, 16), 2), ((2, 1, 130, 40), 1)]
)
@pytest.mark.parametrize("place", [lambda x: x, inside_nan, lambda x: x.transpose(1, 2)])
def test_rotate(shape, rows, dtype, place):
    torch.manual_seed(0)
    B, H, T, D = shape
    x, gradient = (place(torch.randn(shape, dtype=dtype)) for _ in range(2))
    cos, sin = angles(rows, x.shape[2], D, torch.promote_types(dtype, torch.float32))
    x.requires_grad_()
    with guarded():
        found = rotate(x, cos, sin)
        found = found, *torch.autograd.grad(found, x, gradient)
    expected = rotate_twin(x, cos, sin)
    expected = expected, *torch.autograd.grad(expected, x, gradient)
    assert all(error(*pair) <= BOUNDS[dtype] for pair in zip(found, expected, strict=True))


def test_gradients_by_differences():
    shape, options = (2, 1, 5, 6), {"dtype": torch.float64, "requires_grad": True}
    x, y = (torch.randn(shape, **options) for _ in range(2))
    cos, sin = angles(1, 5, 6, torch.float64)
    assert torch.autograd.gradcheck(swiglu, (x, y))
    assert torch.autograd.gradcheck(lambda x: rotate(x, cos, sin), (x,))


def test_operators_are_what_pytorch_expects():
    x, y = (torch.randn(2, 1, 5, 6, requires_grad=True) for _ in range(2))
    torch.library.opcheck(torch.ops.llmlab.swiglu.default, (x, inside_nan(y)))
    torch.library.opcheck(torch.ops.llmlab.rotate.default, (inside_nan(x), *angles(1, 5, 6)))


def test_compiles_whole():
    x, y = (torch.randn(2, 1, 5, 6, requires_grad=True) for _ in range(2))
    cos, sin = angles(1, 5, 6)

    def both(x, y):
        return swiglu(rotate(x, cos, sin), y).square().sum()

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(x, y), (x, y))
    expected = torch.autograd.grad(swiglu_twin(rotate_twin(x, cos, sin), y).square().sum(), (x, y))
    assert all(error(*pair) <= 1e-5 for pair in zip(found, expected, strict=True))
