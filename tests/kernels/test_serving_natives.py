"""What is native only while serving: the same as the twins, and out of the way of gradients."""

import pytest
import torch

from llmlab.kernels.native import function_of
from llmlab.kernels.norm import rms_norm, rms_norm_twin
from llmlab.kernels.op import serving
from llmlab.kernels.pointwise import rotate, rotate_twin, swiglu, swiglu_twin
from llmlab.kernels.pointwise_native import add, embed
from tests.kernels.guards import guarded

pytestmark = pytest.mark.skipif(
    function_of("run_tape", "pi") is None, reason="needs a C++ compiler"
)

DTYPES = [torch.float32, torch.bfloat16]


def close(found, expected, dtype):
    assert found.dtype == dtype
    assert found.shape == expected.shape
    # One unit in the last place: exponentials and roots end in another last bit of float32.
    rtol = 1e-5 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 7), (1, 5, 64), (2, 3, 576), (300, 200), (0, 8)])
def test_norms(shape, dtype):
    torch.manual_seed(0)
    x, weight = torch.randn(shape).to(dtype), torch.randn(shape[-1]).to(dtype)
    with serving(), guarded():
        found = rms_norm(x, weight, 1e-5)
    close(found, rms_norm_twin(x, weight, 1e-5)[0], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_of_heads_inside_wider_rows(dtype):
    torch.manual_seed(0)
    rows = torch.randn(1, 6, 100).to(dtype)
    heads, weight = rows[..., 20:68].view(1, 6, 3, 16), torch.randn(16).to(dtype)
    with serving(), guarded():
        found = rms_norm(heads, weight, 1e-5)
    close(found, rms_norm_twin(heads, weight, 1e-5)[0], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("T", "H", "D"), [(1, 3, 64), (5, 2, 10), (130, 9, 64)])
def test_rotations_of_heads_inside_wider_rows(T, H, D, dtype):
    torch.manual_seed(0)
    x = torch.randn(1, T, H * D + 8).to(dtype)[..., 4:-4].view(1, T, H, D).transpose(1, 2)
    angles = torch.randn(1, 1, T, D // 2).repeat(1, 1, 1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    with serving(), guarded():
        found = rotate(x, cos, sin)
    close(found, rotate_twin(x, cos, sin), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 63, 40_000])
def test_gates_and_sums(count, dtype):
    torch.manual_seed(0)
    a, b = (torch.randn(count).to(dtype) * 4 for _ in range(2))
    with serving(), guarded():
        gated, total = swiglu(a, b), add(a, b)
    close(gated, swiglu_twin(a, b), dtype)
    assert torch.equal(total, a + b)


def test_rows_of_a_table():
    table, ids = torch.randn(10, 7), torch.tensor([[3, 9, 0, 3]])
    assert torch.equal(embed(table, ids), table[ids])


def test_gradients_flow_and_training_is_not_touched():
    x = torch.randn(3, 16, requires_grad=True)
    weight = torch.randn(16, requires_grad=True)
    with serving():
        swiglu(rms_norm(x, weight, 1e-5), x).sum().backward()
    assert x.grad is not None
    assert weight.grad is not None
    plain = x.detach()
    assert torch.equal(
        rms_norm(plain, weight.detach(), 1e-5), rms_norm_twin(plain, weight, 1e-5)[0]
    )
