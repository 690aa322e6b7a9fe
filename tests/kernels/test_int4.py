import pytest
import torch

from llmlab.kernels.int4 import (
    dequantize_groups,
    quantize_groups,
    w4a16_linear,
    w4a16_linear_twin,
)
from tests.kernels.guards import WITH_AND_WITHOUT_INTERPRETER, error, guarded, inside_nan

pytestmark = WITH_AND_WITHOUT_INTERPRETER


def test_rounded_to_the_nearest_of_fifteen_values():
    torch.manual_seed(0)
    weight = torch.randn(5, 96)
    weight[2, :32] = 0
    packed, scale = quantize_groups(weight, 32)
    assert (packed.shape, packed.dtype, scale.shape) == ((5, 48), torch.uint8, (5, 3))
    off = (dequantize_groups(packed, scale) - weight).view(5, 3, 32).abs()
    assert (off <= scale[..., None] / 2 + 1e-6).all()
    assert scale[2, 0] == 0
    largest = weight.view(5, 3, 32).abs().amax(-1)
    torch.testing.assert_close(7 * scale, largest)


def test_exact_where_the_weights_are_such_values():
    weight = torch.arange(-7, 8).repeat(2, 16)[:, :64].float() * torch.tensor([[0.5], [4.0]])
    packed, scale = quantize_groups(weight, 16)
    assert torch.equal(dequantize_groups(packed, scale), weight)
    x = torch.randn(3, 64)
    torch.testing.assert_close(w4a16_linear(x, packed, scale), x @ weight.t())


@pytest.mark.parametrize("group_size", [0, 7, 48])
def test_groups_that_do_not_fit(group_size):
    with pytest.raises(ValueError, match=rf"group_size={group_size} for rows of 64; take an even"):
        quantize_groups(torch.zeros(2, 64), group_size)


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
