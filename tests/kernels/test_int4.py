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


def off(weight, group_size):
    packed, scale = quantize_groups(weight, group_size)
    return error(dequantize_groups(packed, scale), weight)


def test_sizes_and_a_group_of_zeros():
    torch.manual_seed(0)
    weight = torch.randn(5, 96)
    weight[2, :32] = 0
    packed, scale = quantize_groups(weight, 32)
    assert (packed.shape, packed.dtype) == ((5, 48), torch.uint8)
    assert (scale.shape, scale.dtype) == ((5, 3), torch.float32)
    assert scale[2, 0] == 0
    assert dequantize_groups(packed, scale)[2, :32].tolist() == [0] * 32


@pytest.mark.parametrize("group_size", [32, 64])
def test_closer_than_rounding_to_the_nearest(group_size):
    torch.manual_seed(0)
    weight = torch.randn(64, 256)
    groups = weight.view(64, -1, group_size)
    step = groups.abs().amax(-1, keepdim=True) / 7
    nearest = ((groups / step).round() * step).view(64, 256)
    assert off(weight, group_size) < 0.9 * error(nearest, weight)
    assert off(weight, group_size) < 0.1


def test_exact_where_the_weights_are_such_values():
    for low in (-7, -8):
        values = torch.arange(low, 8).repeat(2, 16)[:, :64].float()
        weight = values * torch.tensor([[0.5], [-4.0]])
        packed, scale = quantize_groups(weight, 16)
        torch.testing.assert_close(dequantize_groups(packed, scale), weight)
        x = torch.randn(3, 64)
        torch.testing.assert_close(w4a16_linear(x, packed, scale), x @ weight.t())


def test_an_outlier_and_tiny_weights_stay_finite():
    weight = torch.zeros(1, 32)
    weight[0, 3], weight[0, 4] = 1e30, 1e-30
    assert off(weight, 32) < 1e-6
    assert off(torch.full((1, 32), 1e-38), 32) < 1e-3


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
