import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.kernels.lora import add_lora_, add_lora_twin, group_by_adapter
from tests.kernels.guards import error, guarded, inside_nan


def check(adapter, L, R, I, O, dtype=torch.float32):  # noqa: E741
    torch.manual_seed(0)
    N = len(adapter)
    x = inside_nan(torch.randn(N, I, dtype=dtype))
    down, up = torch.randn(L, R, I, dtype=dtype), torch.randn(L, O, R, dtype=dtype)
    whole = torch.randn(N + 2, O, dtype=dtype)
    expected = whole.clone()
    grouped = group_by_adapter(torch.tensor(adapter), L)
    scale = torch.rand(L) + 0.5
    with guarded():
        add_lora_(whole[1:-1], x, down, up, scale, *grouped)
    add_lora_twin(expected[1:-1], x, down, up, scale, *grouped)
    bound = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    assert error(whole, expected) <= bound
    untouched = [0, N + 1, *(row + 1 for row, number in enumerate(adapter) if number < 0)]
    assert torch.equal(whole[untouched], expected[untouched])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("adapter", "L", "R", "I", "O"),
    [
        ([0], 1, 1, 16, 16),
        ([-1, -1], 1, 8, 16, 16),
        ([2, 0, -1, 2, 2], 3, 8, 33, 130),
        ([1] * 40 + [0] * 3 + [-1] * 5 + [3] * 17, 5, 16, 1100, 70),
        ([0, 1] * 9, 2, 64, 96, 40),
    ],
)
def test_rows_are_those_of_the_twin(adapter, L, R, I, O, dtype):  # noqa: E741
    check(adapter, L, R, I, O, dtype)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.data())
def test_any_adapters(L, data):
    check(data.draw(st.lists(st.integers(-1, L - 1), min_size=1, max_size=60)), L, 4, 20, 24)


def test_the_operator_is_what_pytorch_expects():
    grouped = group_by_adapter(torch.tensor([1, -1, 0]), 2)
    tensors = torch.randn(3, 8), torch.randn(3, 16), torch.randn(2, 4, 16), torch.randn(2, 8, 4)
    torch.library.opcheck(torch.ops.llmlab.add_lora.default, (*tensors, torch.ones(2), *grouped))
