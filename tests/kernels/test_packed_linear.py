"""Packed layers: right, the same for any neighbours, and nothing written beside the result."""

import pytest
import torch
import torch.nn.functional as F

from llmlab.kernels.int4 import dequantize_groups, quantize_groups
from llmlab.kernels.int8 import quantize_rows_twin
from llmlab.kernels.packed_linear import PackedLinear, can_pack
from tests.kernels.guards import guarded, inside_nan

pytestmark = pytest.mark.skipif(
    not can_pack(torch.zeros(1, 1)), reason="needs a C++ compiler, and native functions"
)

SHAPES = [(1, 1, 1), (1, 576, 70), (5, 33, 17), (17, 90, 200), (300, 130, 40), (0, 8, 8)]
"""M, K, N."""

# Sums of K products in another order, and one rounding of the result.
TOLERANCE = {torch.float32: (1e-5, 2e-5), torch.bfloat16: (2**-8, 2e-3)}


def layers(shape, dtype):
    torch.manual_seed(0)
    M, K, N = shape
    x = inside_nan(torch.randn(M, K).to(dtype))
    weight, gate = (torch.randn(N, K).to(dtype) * K**-0.5 for _ in range(2))
    return x, weight, gate, torch.randn(N).to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_packed_layer_is_a_linear_layer(shape, dtype, has_bias):
    x, weight, _, bias = layers(shape, dtype)
    layer = PackedLinear(weight, bias if has_bias else None)
    with guarded():
        found = layer(x)
    exact = F.linear(x.double(), weight.double(), bias.double() if has_bias else None)
    assert found.dtype == dtype
    rtol, atol = TOLERANCE[dtype]
    torch.testing.assert_close(found.double(), exact, rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scheme", ["stored", "int8", "int8-dynamic", "int4"])
def test_a_gated_layer_is_two_layers_and_the_gate_to_the_last_bit(shape, dtype, scheme):
    x, weight, gate, _ = layers(shape, dtype)
    joined = PackedLinear(weight, gate=gate, scheme=scheme)
    apart = (PackedLinear(w, scheme=scheme)(x) for w in (gate, weight))
    with guarded():
        found = joined(x)
    gates, values = apart
    # silu of torch and ours differ in the last bit of float32.
    expected = F.silu(gates) * values
    rtol = 1e-6 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_int8_is_the_product_with_rounded_weights(shape, dtype):
    x, weight, _, bias = layers(shape, dtype)
    layer = PackedLinear(weight, bias, scheme="int8")
    with guarded():
        found = layer(x)
    numbers, scale = quantize_rows_twin(weight)
    exact = F.linear(x.double(), numbers.double() * scale.double()[:, None], bias.double())
    # Activations are rounded to 1/32512 of the row's largest.
    rtol, atol = TOLERANCE[dtype]
    torch.testing.assert_close(found.double(), exact, rtol=rtol, atol=atol + 2e-4)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_int4_is_the_product_with_rounded_weights(shape, dtype):
    x, weight, _, bias = layers(shape, dtype)
    layer = PackedLinear(weight, bias, scheme="int4")
    with guarded():
        found = layer(x)
    padded = F.pad(weight, (0, -weight.shape[1] % 32))
    rounded = dequantize_groups(*quantize_groups(padded, 32))[:, : weight.shape[1]].bfloat16()
    exact = F.linear(x.bfloat16().double(), rounded.double(), bias.double())
    rtol, atol = TOLERANCE[dtype]
    torch.testing.assert_close(found.double(), exact, rtol=rtol, atol=atol)


@pytest.mark.parametrize("shape", SHAPES)
def test_int8_dynamic_rounds_activations_too(shape):
    x, weight, _, bias = layers(shape, torch.float32)
    found = PackedLinear(weight, bias, scheme="int8-dynamic")(x)

    def rounded(rows):
        scale = rows.abs().amax(1, keepdim=True) / 127
        return torch.where(scale > 0, (rows / scale).round(), 0).double(), scale.double()

    (numbers, x_scale), (weights, scale) = rounded(x), rounded(weight)
    exact = numbers @ weights.t() * x_scale * scale.t() + bias.double()
    # Whole numbers, so exact but for the scales; a half may be rounded to the other side.
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=5e-2)
    assert (found.double() - exact).abs().mean().nan_to_num() < 1e-4


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("scheme", ["stored", "int8", "int8-dynamic", "int4"])
def test_a_row_does_not_depend_on_the_others(dtype, scheme):
    x, weight, gate, _ = layers((300, 90, 70), dtype)
    for layer in (PackedLinear(weight, scheme=scheme), PackedLinear(weight, gate=gate)):
        together = layer(x)
        for first, last in ((0, 1), (3, 4), (5, 21), (16, 49), (299, 300), (100, 300)):
            assert torch.equal(layer(x[first:last]), together[first:last])


def test_threads_do_not_change_a_bit():
    x, weight, _, _ = layers((40, 90, 700), torch.bfloat16)
    layer, threads = PackedLinear(weight), torch.get_num_threads()
    found = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(layer(x))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_wide_results_are_float32_before_rounding():
    x, weight, _, _ = layers((3, 64, 50), torch.bfloat16)
    wide = PackedLinear(weight, is_wide=True)(x)
    assert wide.dtype == torch.float32
    assert torch.equal(wide.bfloat16(), PackedLinear(weight)(x))


def test_leading_dimensions_stay():
    layer = PackedLinear(torch.randn(6, 8))
    assert layer(torch.randn(2, 3, 8)).shape == (2, 3, 6)


@pytest.mark.parametrize("x", [torch.zeros(2, 9), torch.zeros(2, 8, dtype=torch.bfloat16)])
def test_another_width_or_dtype_is_refused(x):
    with pytest.raises(ValueError, match=r"this layer takes \(..., 8\) torch.float32"):
        PackedLinear(torch.randn(6, 8))(x)
