import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.kernels.lora import add_lora_, add_lora_twin, group_by_adapter
from llmlab.kernels.native import function_of
from llmlab.kernels.op import INTERPRETED
from llmlab.kernels.tape import record
from tests.kernels.guards import WITH_AND_WITHOUT_INTERPRETER, error, guarded, inside_nan

pytestmark = WITH_AND_WITHOUT_INTERPRETER
native = pytest.mark.skipif(
    INTERPRETED or function_of("run_tape", "pi") is None, reason="needs a C++ compiler"
)

BOUNDS = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""Relative error: rounding of the last place."""


def up_of(L, O, R, dtype, *, is_across):  # noqa: E741
    """Return (L, O, R), dense in that order or in the order that CPUs like best."""
    return torch.randn(L, R, O, dtype=dtype).mT if is_across else torch.randn(L, O, R, dtype=dtype)


def check(adapter, L, R, I, O, dtype=torch.float32, *, is_across=False):  # noqa: E741
    torch.manual_seed(0)
    N = len(adapter)
    x = inside_nan(torch.randn(N, I, dtype=dtype))
    down, up = torch.randn(L, R, I, dtype=dtype), up_of(L, O, R, dtype, is_across=is_across)
    whole = torch.randn(N + 2, O + 3, dtype=dtype)
    expected = whole.clone()
    grouped = group_by_adapter(torch.tensor(adapter), L)
    scale = torch.rand(L) + 0.5
    with guarded():
        add_lora_(whole[1:-1, 2:-1], x, down, up, scale, *grouped)
    add_lora_twin(expected[1:-1, 2:-1], x, down, up, scale, *grouped)
    assert error(whole, expected) <= BOUNDS[dtype]
    untouched = [0, N + 1, *(row + 1 for row, number in enumerate(adapter) if number < 0)]
    assert torch.equal(whole[untouched], expected[untouched])
    assert torch.equal(whole[:, [0, 1, -1]], expected[:, [0, 1, -1]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("is_across", [False, True])
@pytest.mark.parametrize(
    ("adapter", "L", "R", "I", "O"),
    [
        ([0], 1, 1, 16, 16),
        ([-1, -1], 1, 8, 16, 16),
        ([2, 0, -1, 2, 2], 3, 8, 33, 130),
        ([1] * 40 + [0] * 3 + [-1] * 5 + [3] * 17, 5, 16, 1100, 70),
        ([0, 1] * 9, 2, 64, 96, 40),
        ([0, 1, 0, -1], 2, 13, 7, 5),
        ([1] * 70, 2, 12, 64, 600),
    ],
)
def test_rows_are_those_of_the_twin(adapter, L, R, I, O, dtype, is_across):  # noqa: E741
    check(adapter, L, R, I, O, dtype, is_across=is_across)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.data())
def test_any_adapters(L, data):
    check(data.draw(st.lists(st.integers(-1, L - 1), min_size=1, max_size=60)), L, 4, 20, 24)


def test_the_operator_is_what_pytorch_expects():
    grouped = group_by_adapter(torch.tensor([1, -1, 0]), 2)
    tensors = torch.randn(3, 8), torch.randn(3, 16), torch.randn(2, 4, 16), torch.randn(2, 8, 4)
    arguments = (*tensors, torch.ones(2), *grouped, None)
    torch.library.opcheck(torch.ops.llmlab.add_lora.default, arguments)


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_lies_behind_the_rank_of_an_adapter_is_not_read(dtype):
    torch.manual_seed(0)
    down, up = torch.randn(3, 8, 40, dtype=dtype), up_of(3, 50, 8, dtype, is_across=True)
    x, out = torch.randn(6, 40, dtype=dtype), torch.randn(6, 50, dtype=dtype)
    grouped, scale = group_by_adapter(torch.tensor([0, 1, 2, -1, 0, 1]), 3), torch.rand(3)
    ranks = torch.tensor([5, 0, 8], dtype=torch.int32)
    for number, rank in enumerate(ranks.tolist()):
        down[number, rank:] = 0
        up[number, :, rank:] = 0
    expected, found = out.clone(), out.clone()
    add_lora_twin(expected, x, down, up, scale, *grouped)
    for number, rank in enumerate(ranks.tolist()):
        down[number, rank:] = torch.nan
        up[number, :, rank:] = torch.nan
    add_lora_(found, x, down, up, scale, *grouped, ranks)
    assert error(found, expected) <= BOUNDS[dtype]
    assert torch.equal(found[[1, 3, 5]], out[[1, 3, 5]])


@native
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_is_the_same_alone_and_among_others_to_the_last_bit(dtype, threads):
    torch.manual_seed(0)
    L, R, I, O, N = 3, 21, 200, 333, 150  # noqa: E741
    down, up = torch.randn(L, R, I, dtype=dtype), up_of(L, O, R, dtype, is_across=True)
    x, out = torch.randn(N, I, dtype=dtype), torch.randn(N, O, dtype=dtype)
    scale, ranks = torch.rand(L), torch.tensor([21, 6, 13], dtype=torch.int32)
    adapter = torch.randint(-1, L, (N,))

    def run(chosen):
        found = out[chosen]
        grouped = group_by_adapter(adapter[chosen], L)
        return add_lora_(found, x[chosen], down, up, scale, *grouped, ranks)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = run(torch.arange(N))
        for chosen in (torch.tensor([n]) for n in range(0, N, 7)):
            assert torch.equal(run(chosen)[0], together[chosen[0]])
        shuffled = torch.randperm(N)[:90]
        assert torch.equal(run(shuffled), together[shuffled])
    finally:
        torch.set_num_threads(before)


@native
def test_a_tape_takes_the_adapters_that_then_are_in_memory():
    torch.manual_seed(0)
    L, R, I, O, N = 3, 4, 32, 48, 6  # noqa: E741
    down, up = torch.randn(L, R, I), up_of(L, O, R, torch.float32, is_across=True)
    x, base, scale = torch.randn(N, I), torch.zeros(N, O), torch.rand(L)
    ranks = torch.full((L,), R, dtype=torch.int32)
    rows, starts = group_by_adapter(torch.tensor([0, 1, -1, 0, 0, 2]), L)
    with torch.inference_mode():
        tape, _ = record(lambda: add_lora_(base, x, down, up, scale, rows, starts, ranks))
    for adapter in ([2, 2, 2, -1, -1, -1], [-1] * N, [0, 1, 2, 0, 1, 2]):
        for own, new in zip(
            (rows, starts), group_by_adapter(torch.tensor(adapter), L), strict=True
        ):
            own.copy_(new)
        x.normal_()
        scale.uniform_()
        expected = base.clone()
        tape.run()
        add_lora_twin(expected, x, down, up, scale, rows, starts)
        torch.testing.assert_close(base, expected, rtol=1e-5, atol=1e-5)
