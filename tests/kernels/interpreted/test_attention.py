import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.kernels.attention import attention, attention_twin
from tests.kernels.guards import error, guarded, inside_nan

BOUNDS = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def tensors(B, H, G, T, D, dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.randn(B, heads, T, D, dtype=dtype) for heads in (H, G, G, H)]


def check(inputs, bound=BOUNDS[torch.float32], cu_seqlens=None, **options):
    """Compare result and gradients with the twin in float64."""
    q, k, v, gradient = inputs
    leaves = [x.requires_grad_() for x in (q, k, v)]
    cu = None if cu_seqlens is None else torch.tensor(cu_seqlens, dtype=torch.int32)
    with guarded():
        found = attention(*leaves, cu_seqlens=cu, **options)
        found = found, *torch.autograd.grad(found, leaves, gradient)
    exact = [x.detach().double().requires_grad_() for x in leaves]
    scale = options.get("scale", q.shape[-1] ** -0.5)
    expected = attention_twin(
        exact[0], exact[1], exact[2], cu, options.get("causal", True), scale,
        options.get("window") or 0, options.get("softcap") or 0.0,
    )[0]  # fmt: skip
    expected = expected, *torch.autograd.grad(expected, exact, gradient.double())
    for mine, right in zip(found, expected, strict=True):
        if right.norm() < 1e-9:  # one visible key: nothing reaches q and k
            assert mine.abs().max() < bound
        else:
            assert error(mine, right) <= bound


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 1, 16), (2, 2, 2, 1, 16), (1, 2, 1, 70, 16), (1, 3, 1, 17, 40), (2, 4, 2, 33, 64),
     (1, 9, 3, 20, 32), (1, 4, 1, 130, 16), (1, 2, 1, 20, 128), (1, 2, 1, 20, 256)],
)  # fmt: skip
@pytest.mark.parametrize("place", [lambda x: x, inside_nan])
def test_result_and_gradients_are_those_of_the_twin(shape, place):
    check(map(place, tensors(*shape)))


@pytest.mark.parametrize(
    "options",
    [{"causal": False}, {"window": 1}, {"window": 5}, {"window": 70}, {"window": 1000},
     {"softcap": 3.0}, {"softcap": 3.0, "window": 9}, {"scale": 1.0}],
)  # fmt: skip
def test_options(options):
    check(tensors(1, 2, 1, 150, 16), **options)


@pytest.mark.parametrize("options", [{}, {"window": 4}, {"causal": False}, {"softcap": 2.0}])
def test_documents_of_no_one_and_many_tokens(options):
    starts = [0, 1, 12, 12, 30, 47, 60]
    check(tensors(2, 2, 1, 30, 16), cu_seqlens=starts, **options)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_documents(data):
    T, B = data.draw(st.integers(1, 80)), data.draw(st.integers(1, 2))
    inner = data.draw(st.lists(st.integers(0, B * T), max_size=6))
    starts = sorted([*inner, *(row * T for row in range(B + 1))])
    window = data.draw(st.none() | st.integers(1, T))
    check(tensors(B, 2, 1, T, 16), cu_seqlens=starts, window=window)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_types(dtype):
    check(tensors(1, 2, 1, 40, 64, dtype), BOUNDS[dtype])


def test_heads_beside_each_other_as_models_lay_them():
    check(x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors(2, 4, 2, 33, 16))


def test_large_scores_do_not_overflow():
    q, k, v, _ = tensors(1, 1, 1, 40, 16)
    found = attention(30 * q, 30 * k, v)
    expected = attention_twin(30 * q, 30 * k, v, None, True, 0.25, 0, 0.0)[0]
    assert error(found, expected) <= 1e-5


@pytest.mark.parametrize("options", [{"window": 4, "softcap": 2.0}, {"causal": False}])
def test_gradients_by_differences(options):
    q, k, v, _ = tensors(1, 2, 1, 5, 3, torch.float64)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    assert torch.autograd.gradcheck(lambda *x: attention(*x, **options), leaves)


def test_the_operator_is_what_pytorch_expects():
    q, k, v, _ = tensors(1, 2, 1, 7, 16)
    leaves = [inside_nan(x.requires_grad_()) for x in (q, k, v)]
    cu = torch.tensor([0, 3, 7], dtype=torch.int32)
    for documents in (None, cu):
        torch.library.opcheck(
            torch.ops.llmlab.attention.default, (*leaves, documents, True, 0.25, 0, 0.0)
        )


def test_compiles_whole():
    q, k, v, gradient = tensors(1, 2, 1, 7, 16)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(*leaves), leaves, gradient)
    expected = torch.autograd.grad(attention(*leaves), leaves, gradient)
    assert all(error(*pair) <= 1e-6 for pair in zip(found, expected, strict=True))
