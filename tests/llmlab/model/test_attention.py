"""Sliding windows against a mask over the whole matrix of scores."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.model.attention import attention_of, causal, in_window

# float64: the same sums, split in another way.
ATOL = 1e-12


def heads(num_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    shapes = ((2, 4), (2, 2), (2, 2))
    q, k, v = (torch.randn(*shape, num_tokens, 8, dtype=torch.float64) for shape in shapes)
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def masked(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    T = q.shape[2]
    distance = torch.arange(T)[:, None] - torch.arange(T)[None]
    mask = (distance >= 0) & (distance < window)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


@pytest.mark.parametrize("window", [1, 2, 100, 128, 129, 200, 399, 400, 1000])
@pytest.mark.parametrize("num_tokens", [1, 90, 128, 129, 256, 400])
def test_equals_a_mask(num_tokens: int, window: int):
    inputs = heads(num_tokens)
    expected, got = masked(*inputs, window), in_window(*inputs, window)
    torch.testing.assert_close(got, expected, atol=ATOL, rtol=0)
    for mine, theirs in zip(
        torch.autograd.grad(got.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=ATOL, rtol=1e-12)


def test_each_layer_has_its_window():
    inputs = heads(20)
    attend = attention_of((3, None))
    torch.testing.assert_close(attend(0, *inputs), masked(*inputs, 3))
    torch.testing.assert_close(attend(1, *inputs), causal(1, *inputs))
    assert attention_of((None, None)) is causal


def test_no_mask_as_long_as_the_row():
    """A row of 20,000 tokens would need 400 MB for one mask of scores."""
    q, k, v = (torch.randn(1, 1, 20_000, 8) for _ in range(3))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, keep):
        sizes: list[int] = []
        in_window(q.requires_grad_(), k, v, 64)
    assert max(sizes) < 1_000_000


def keep(x: Tensor) -> Tensor:
    return x
