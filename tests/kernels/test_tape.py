"""Tapes: a recorded run, repeated, does what the code would do on the numbers then in memory."""

import gc

import pytest
import torch

from llmlab.kernels.native import function_of
from llmlab.kernels.op import serving
from llmlab.kernels.packed_linear import PackedLinear
from llmlab.kernels.pointwise import swiglu
from llmlab.kernels.tape import NotRecordable, record

pytestmark = pytest.mark.skipif(
    function_of("run_tape", "pi") is None, reason="needs a C++ compiler"
)


def chain():
    torch.manual_seed(0)
    layers = [PackedLinear(torch.randn(32, 32) / 6) for _ in range(5)]

    def compute(x):
        for layer in layers:
            x = x + swiglu(layer(x), x)
        return x

    return compute


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_a_tape_repeats_what_was_recorded_on_new_numbers(rows):
    compute, x = chain(), torch.randn(rows, 32)
    with torch.inference_mode(), serving():
        tape, found = record(lambda: compute(x))
        assert torch.equal(found, compute(x))
        for _ in range(3):
            x.copy_(torch.randn(rows, 32))
            tape.run()
            assert torch.equal(found, compute(x))
    assert len(tape) == 15


def test_memory_between_steps_is_used_again_and_the_result_is_not():
    compute, x = chain(), torch.randn(4, 32)
    with torch.inference_mode(), serving():
        tape, found = record(lambda: compute(x))
        first = found.clone()
        others = [record(lambda: compute(x)) for _ in range(3)]
        assert len({other.data_ptr() for _, other in others} | {found.data_ptr()}) == 4
        tape.run()
        assert torch.equal(found, first)
        gc.collect()
        # Of 15 results of one size, at most 4 live at the same time.
        assert sum(len(free) for free in tape._memory._free.values()) <= 4


def test_what_is_not_native_is_refused_by_name():
    x = torch.randn(3, 32)
    with serving(), pytest.raises(NotRecordable, match=r"aten\.exp\.default is no native call"):
        record(x.exp)
    assert torch.equal(x.exp(), x.exp()), "nothing stays switched on"


def test_views_are_not_calls():
    x, layer = torch.randn(2, 3, 32), PackedLinear(torch.randn(8, 32))
    with torch.inference_mode(), serving():
        tape, found = record(lambda: layer(x[0]).view(3, 2, 4).transpose(0, 1))
    assert len(tape) == 1
    assert found.shape == (2, 3, 4)
