import pytest
import torch
from torch import nn

from llmlab.kernels.int4 import dequantize_groups
from llmlab.kernels.quantized_linear import Int4Linear, Int8Linear, quantize_
from tests.kernels.guards import WITH_AND_WITHOUT_INTERPRETER, error

pytestmark = WITH_AND_WITHOUT_INTERPRETER

BOUNDS = {"int8": 0.01, "int8-dynamic": 0.02, "int4": 0.11}
"""Of the relative error: int8 rounds normal weights by about 0.8 %, int4 by about 8 %."""


class Network(nn.Module):
    def __init__(self, bias):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Linear(128, 192, bias=bias), nn.SiLU(), nn.Linear(192, 64, bias=bias)
        )
        self.lm_head = nn.Linear(64, 10)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(128,), (3, 128), (2, 40, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic", "int4"])
def test_a_quantised_network_is_close_to_the_plain_one(scheme, dtype, shape, bias):
    plain = Network(bias).to(dtype)
    x = torch.randn(shape, dtype=dtype)
    expected = plain.body(x)
    found = quantize_(Network(bias).to(dtype), scheme).body(x)
    assert found.dtype == dtype
    assert 0 < error(found, expected) < BOUNDS[scheme] + (0.01 if dtype == torch.bfloat16 else 0)


@pytest.mark.parametrize("rows", [1, 4, 5, 40])
def test_weights_are_the_same_for_any_number_of_rows(rows):
    torch.manual_seed(0)
    weight, x = torch.randn(33, 128), torch.randn(rows, 128)
    int8 = Int8Linear(weight, is_dynamic=False)
    widened = int8.weight.float() * int8.weight_scale[:, None]
    torch.testing.assert_close(int8(x), x @ widened.t(), rtol=1e-5, atol=1e-5)
    int4 = Int4Linear(weight)
    widened = dequantize_groups(int4.weight_packed, int4.weight_scale)
    torch.testing.assert_close(int4(x), x @ widened.t(), rtol=1e-5, atol=1e-5)


def test_many_rows_of_activations_are_rounded_and_two_are_not():
    torch.manual_seed(0)
    weight = torch.randint(-127, 128, (32, 128)).float()
    weight[:, 0] = 127  # so that int8 keeps the weights exactly
    layer = Int8Linear(weight, is_dynamic=True)
    x = torch.randn(64, 128)
    torch.testing.assert_close(layer(x[:2]), x[:2] @ weight.t(), rtol=1e-5, atol=1e-3)
    assert 1e-3 < error(layer(x), x @ weight.t()) < 0.02


def test_the_head_and_what_is_named_stay():
    model = quantize_(Network(False))
    assert type(model.lm_head) is nn.Linear
    assert type(model.body[0]) is Int8Linear
    model = quantize_(Network(False), "int4", skip=("body.2", "lm_head"))
    assert type(model.body[0]) is Int4Linear
    assert type(model.body[2]) is nn.Linear
    assert sum(x.numel() * x.element_size() for x in model.body[0].buffers()) == (
        128 * 192 // 2 + 4 * 4 * 192
    )


def test_bad_arguments_change_nothing():
    model = Network(False)
    with pytest.raises(ValueError, match="scheme='int3'; it must be int8, int8-dynamic or int4"):
        quantize_(model, "int3")  # pyrefly: ignore
    odd = nn.Sequential(nn.Linear(128, 100), nn.Linear(100, 4))
    with pytest.raises(ValueError, match="1 has rows of 100, no multiple of 32 as int4 wants"):
        quantize_(odd, "int4")
    assert type(odd[0]) is nn.Linear


@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic", "int4"])
@pytest.mark.parametrize("rows", [2, 40])
def test_gradients_reach_the_activations(scheme, rows):
    plain, model = Network(False).body[0], quantize_(Network(False), scheme).body[0]
    x = torch.randn(rows, 128, requires_grad=True)
    (found,) = torch.autograd.grad(model(x).square().sum(), x)
    (expected,) = torch.autograd.grad(plain(x).square().sum(), x)
    assert 0 < error(found, expected) < 0.15


@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic", "int4"])
def test_compilers_take_it_whole(scheme):
    model = quantize_(Network(False), scheme).body
    x = torch.randn(5, 128)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))
    torch.testing.assert_close(compiled(x.requires_grad_()), model(x))


def test_a_state_dict_goes_both_ways():
    torch.manual_seed(0)
    first = Int8Linear(torch.randn(5, 8), torch.randn(5), is_dynamic=False)
    second = Int8Linear(torch.zeros(5, 8), torch.zeros(5), is_dynamic=False)
    second.load_state_dict(first.state_dict())
    x = torch.randn(2, 8)
    assert torch.equal(first(x), second(x))
