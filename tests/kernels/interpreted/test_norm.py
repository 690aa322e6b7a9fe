import pytest
import torch

from llmlab.kernels.norm import add_rms_norm, rms_norm, rms_norm_twin
from tests.kernels.guards import error, guarded, inside_nan

BOUNDS = {torch.float32: 2e-6, torch.float64: 1e-13, torch.float16: 1e-3, torch.bfloat16: 1e-2}
SHAPES = [(1, 3), (3, 5, 64), (7, 33), (130, 16), (2, 0, 8)]


def inputs(shape, dtype):
    torch.manual_seed(0)
    x, residual = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(2))
    weight = torch.randn(shape[-1], dtype=dtype, requires_grad=True)
    return x, residual, weight


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("place", [lambda x: x, inside_nan])
def test_result_and_gradients_are_those_of_the_twin(shape, dtype, place):
    x, _, weight = inputs(shape, dtype)
    x = place(x)
    gradient = place(torch.randn(shape, dtype=dtype))
    with guarded():
        found = rms_norm(x, weight, 1e-5)
        found = found, *torch.autograd.grad(found, (x, weight), gradient)
    expected = rms_norm_twin(x, weight, 1e-5)[0]
    expected = expected, *torch.autograd.grad(expected, (x, weight), gradient)
    assert all(error(*pair) <= BOUNDS[dtype] for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("used", [(True, True), (True, False), (False, True)])
def test_adding_first(dtype, used):
    x, residual, weight = inputs((7, 33), dtype)
    x = inside_nan(x)
    leaves = (x, residual, weight)
    gradients = torch.randn(2, 7, 33, dtype=dtype)

    def loss(out, total):
        parts = zip((out, total), gradients, used, strict=True)
        return torch.stack(
            [(part * gradient * is_used).sum() for part, gradient, is_used in parts]
        ).sum()

    with guarded():
        found = add_rms_norm(x, residual, weight, 1e-5)
        found += torch.autograd.grad(loss(*found), leaves)
    total = residual + x
    expected = rms_norm_twin(total, weight, 1e-5)[0], total
    expected += torch.autograd.grad(loss(*expected), leaves)
    assert all(error(*pair) <= BOUNDS[dtype] for pair in zip(found, expected, strict=True))


def test_gradients_by_differences():
    x, residual, weight = inputs((3, 9), torch.float64)
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-5), (x, weight))
    assert torch.autograd.gradcheck(
        lambda x, r, w: add_rms_norm(x, r, w, 1e-5), (x, residual, weight)
    )


def test_operators_are_what_pytorch_expects():
    x, residual, weight = inputs((3, 9), torch.float64)
    torch.library.opcheck(torch.ops.llmlab.rms_norm.default, (inside_nan(x), weight, 1e-5))
    torch.library.opcheck(torch.ops.llmlab.add_rms_norm.default, (x, residual, weight, 1e-5))


def test_compiles_whole():
    x, _, weight = inputs((3, 8), torch.float32)
    compiled = torch.compile(
        lambda x, w: rms_norm(2 * x, w, 1e-5).square().sum(), fullgraph=True, backend="aot_eager"
    )
    found = torch.autograd.grad(compiled(x, weight), (x, weight))
    plain = rms_norm_twin(2 * x, weight, 1e-5)[0].square().sum()
    expected = torch.autograd.grad(plain, (x, weight))
    assert all(error(*pair) <= 1e-5 for pair in zip(found, expected, strict=True))
