import pytest
import torch
from torch import nn

from llmlab.kernels.packed_linear import PackedLinear, can_pack, pack_linears

needs_bfloat16 = pytest.mark.skipif(
    not can_pack(torch.zeros(1, 1, dtype=torch.bfloat16)),
    reason="this processor has no bfloat16 instructions",
)


@needs_bfloat16
@pytest.mark.parametrize("shape", [(1, 48), (7, 48), (1, 300, 48), (2, 3, 48), (0, 48)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_packing_changes_nothing_but_the_rounding_of_the_last_bit(shape, has_bias):
    torch.manual_seed(0)
    linear = nn.Linear(48, 33, bias=has_bias).to(torch.bfloat16)
    x = torch.randn(shape).to(torch.bfloat16)
    with torch.inference_mode():
        got = PackedLinear(linear.weight, linear.bias)(x)
        exact = nn.functional.linear(
            x.double(), linear.weight.double(), linear.bias.double() if has_bias else None
        )
    assert got.dtype == torch.bfloat16
    assert got.shape == (*shape[:-1], 33)
    # One rounding to 8 bits of mantissa: half a unit in the last place, and the float32 sums.
    assert torch.allclose(got.double(), exact, rtol=2**-8, atol=1e-3)


@needs_bfloat16
def test_every_linear_inside_is_replaced_and_nothing_else():
    model = nn.Sequential(nn.Linear(4, 4), nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.ReLU()}))
    model.to(torch.bfloat16)
    pack_linears(model)
    assert [type(module).__name__ for module in model.modules()] == [
        "Sequential",
        "PackedLinear",
        "ModuleDict",
        "PackedLinear",
        "ReLU",
    ]


def test_float32_is_left_alone():
    model = nn.Sequential(nn.Linear(4, 4))
    pack_linears(model)
    assert type(model[0]) is nn.Linear
    assert not can_pack(model[0].weight)


@needs_bfloat16
def test_a_weight_packed_before_is_used_again():
    linear = nn.Linear(4, 4).to(torch.bfloat16)
    model, packed = nn.Sequential(linear), PackedLinear(linear.weight)
    pack_linears(model, {id(linear.weight): packed})
    assert model[0] is packed
