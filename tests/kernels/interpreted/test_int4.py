import pytest
import torch

from llmlab.kernels.int4 import quantize_groups, w4a16_linear, w4a16_linear_twin
from tests.kernels.interpreted.guards import error, guarded, inside_nan


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "group_size"),
    [((1, 64, 70), 64), ((5, 96, 17), 32), ((37, 512, 40), 256), ((3, 24, 5), 6), ((0, 8, 8), 8)],
)
@pytest.mark.parametrize("place", [lambda x: x, inside_nan])
def test_products_are_those_of_the_twin(shape, group_size, dtype, place):
    torch.manual_seed(0)
    M, K, N = shape
    packed, scale = quantize_groups(torch.randn(N, K), group_size)
    x = place(torch.randn(M, K, dtype=dtype))
    with guarded():
        found = w4a16_linear(x, packed, scale)
    assert found.dtype == dtype
    bound = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
    assert error(found, w4a16_linear_twin(x.double(), packed, scale)) <= bound


def test_the_operator_is_what_pytorch_expects():
    packed, scale = quantize_groups(torch.randn(5, 32), 16)
    torch.library.opcheck(
        torch.ops.llmlab.w4a16_linear.default, (torch.randn(3, 32), packed, scale)
    )
