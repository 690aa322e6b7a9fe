import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.kernels.sample import sample_tokens, sample_tokens_twin
from tests.kernels.guards import WITH_AND_WITHOUT_INTERPRETER, guarded, inside_nan

pytestmark = WITH_AND_WITHOUT_INTERPRETER


def rows(B, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.full((B,), temperature),
        torch.full((B,), top_k, dtype=torch.int32),
        torch.full((B,), top_p),
        torch.full((B,), min_p),
        torch.rand(B, generator=generator),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("V", [1, 97, 5000])
@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.0}, {"temperature": 0.3}, {"top_k": 1}, {"top_k": 5}, {"top_p": 0.5},
     {"top_p": 0.0}, {"min_p": 0.1}, {"top_k": 20, "top_p": 0.7, "min_p": 0.01},
     {"temperature": 1e-6}, {"top_k": 10**6, "top_p": 0.999}],
)  # fmt: skip
def test_tokens_are_those_of_the_twin(V, options, dtype):
    torch.manual_seed(0)
    logits = inside_nan(3 * torch.randn(3, V, dtype=dtype))
    with guarded():
        found = sample_tokens(logits, *rows(3, **options))
    assert found.tolist() == sample_tokens_twin(logits, *rows(3, **options)).tolist()


@settings(max_examples=10, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(0, 12), st.floats(0, 1, width=32), st.floats(0, 1, width=32)
)
def test_any_settings(seed, top_k, top_p, min_p):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-4, 5, (4, 11), generator=generator).float()  # many are equal
    options = rows(4, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    found = sample_tokens(logits, *options)
    expected = sample_tokens_twin(logits, *options)
    # Where a sum meets what is wanted to the last bit, either token is right; never an unkept one.
    parts = (logits - logits.amax(-1, keepdim=True)).exp()
    assert (parts.gather(1, found[:, None])[:, 0] >= min_p).all()
    assert (found != expected).sum() <= 1


def test_shares_of_a_nucleus():
    logits = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.0625]).log()
    draws = (torch.arange(60) + 0.5) / 60
    settings_ = (torch.ones(60), torch.zeros(60).int(), torch.full((60,), 0.7))
    found = sample_tokens(logits.expand(60, -1), *settings_, torch.zeros(60), draws)
    assert found.bincount(minlength=5).tolist() == [40, 20, 0, 0, 0]


def test_tokens_that_are_forbidden_are_never_chosen():
    logits = torch.full((64, 70), -torch.inf)
    logits[:, [3, 69]] = 0.0
    found = sample_tokens(logits, *rows(64))
    assert set(found.tolist()) == {3, 69}


def test_the_operator_is_what_pytorch_expects():
    torch.library.opcheck(
        torch.ops.llmlab.sample_tokens.default, (torch.randn(3, 9), *rows(3, top_k=4, top_p=0.5))
    )
