import pytest
import torch

from llmlab.kernels.int8 import (
    quantize_rows,
    quantize_rows_twin,
    w8a8_linear,
    w8a8_linear_twin,
    w8a16_linear,
    w8a16_linear_twin,
)
from tests.kernels.guards import WITH_AND_WITHOUT_INTERPRETER, error, guarded, inside_nan

pytestmark = WITH_AND_WITHOUT_INTERPRETER

SHAPES = [(1, 1, 1), (1, 576, 70), (5, 33, 17), (37, 90, 200), (70, 130, 40), (0, 8, 8)]
"""M, K, N."""


def weights(K, N):
    return torch.randint(-127, 128, (N, K), dtype=torch.int8), torch.rand(N) + 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (5, 33), (3, 576), (0, 4)])
@pytest.mark.parametrize("place", [lambda x: x, inside_nan])
def test_rows_are_rounded_as_by_the_twin(shape, dtype, place):
    torch.manual_seed(0)
    x = place(torch.randn(shape, dtype=dtype))
    with guarded():
        found = quantize_rows(x)
    for mine, right in zip(found, quantize_rows_twin(x), strict=True):
        assert mine.dtype == right.dtype
        assert torch.equal(mine, right)


def test_rows_of_zeros_and_halves():
    x = torch.zeros(3, 8)
    x[1] = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5])
    x[2] = 1e-38
    found, scale = quantize_rows(x)
    assert found[0].tolist() == [0] * 8
    assert scale[0] == 0
    assert found[1].tolist() == [127, 0, 2, 2, 0, -2, -2, 126]  # ties to even, as torch.round
    assert torch.isfinite(scale).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_w8a8(shape, dtype):
    torch.manual_seed(0)
    M, K, N = shape
    weight, scale = weights(K, N)
    x, x_scale = quantize_rows_twin(torch.randn(M, K))
    with guarded():
        found = w8a8_linear(x, x_scale, weight, scale, dtype)
    expected = w8a8_linear_twin(x, x_scale, weight, scale, dtype)
    torch.testing.assert_close(
        found, expected, rtol=1e-6 if dtype == torch.float32 else 1e-3, atol=0
    )


def test_w8a8_sums_do_not_overflow():
    x = torch.full((1, 4096), -127, dtype=torch.int8)
    found = w8a8_linear(
        x, torch.ones(1), x.expand(2, -1).contiguous(), torch.ones(2), torch.float32
    )
    assert found.tolist() == [[127.0 * 127 * 4096] * 2]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("place", [lambda x: x, inside_nan])
def test_w8a16(shape, dtype, place):
    torch.manual_seed(0)
    M, K, N = shape
    weight, scale = weights(K, N)
    x = place(torch.randn(M, K, dtype=dtype))
    with guarded():
        found = w8a16_linear(x, weight, scale)
    expected = w8a16_linear_twin(x.double(), weight, scale)
    assert found.dtype == dtype
    bound = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
    assert error(found, expected) <= bound


def test_operators_are_what_pytorch_expects():
    weight, scale = weights(33, 17)
    x = torch.randn(5, 33)
    rounded = quantize_rows_twin(x)
    torch.library.opcheck(torch.ops.llmlab.quantize_rows.default, (x,))
    torch.library.opcheck(torch.ops.llmlab.w8a16_linear.default, (x, weight, scale))
    torch.library.opcheck(
        torch.ops.llmlab.w8a8_linear.default, (*rounded, weight, scale, torch.float32)
    )
