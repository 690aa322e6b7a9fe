"""Paged attention against attention written out sequence by sequence in float64."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmlab.kernels.paged_attention import paged_attention, plan_attention, write_pages

# (dtype, largest difference): bfloat16 rounds inputs and output to 8 bits of mantissa.
TOLERANCES = [(torch.float32, 2e-5), (torch.bfloat16, 3e-2)]


def naive(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of the last T of S tokens: (H, T, D), (G, S, D) to (H, T, D), float64."""
    H, T, D = q.shape
    G, S, _ = k.shape
    out = torch.empty(H, T, D, dtype=torch.float64)
    for h in range(H):
        for t in range(T):
            seen = S - T + t + 1
            keys, values = k[h // (H // G), :seen], v[h // (H // G), :seen]
            scores = keys.double() @ q[h, t].double() / math.sqrt(D)
            out[h, t] = torch.softmax(scores, 0) @ values.double()
    return out


class Cache:
    """A cache of shuffled pages, filled with what each sequence has computed so far."""

    def __init__(self, contexts, *, G, D, page_len, dtype, neighbours=False):
        generator = torch.Generator().manual_seed(sum(contexts))
        num_pages = [-(-length // page_len) for length in contexts]
        numbers = list(range(1, sum(num_pages) + 1))
        if not neighbours:
            random.Random(len(contexts)).shuffle(numbers)
        self.tables = [[numbers.pop(0) for _ in range(count)] for count in num_pages]
        self.full = [torch.randn(2, G, S, D, generator=generator).to(dtype) for S in contexts]
        # What no token was written to is huge, so that attending to it shows.
        self.kv = torch.full(((sum(num_pages) + 1) * page_len, 2, G, D), 1e4, dtype=dtype)
        self.page_len, self.dtype = page_len, dtype
        self.contexts, self.generator = contexts, generator

    def attend(self, new_lens, H):
        D = self.full[0].shape[-1]
        plan = plan_attention(
            new_lens, self.contexts, self.tables, page_len=self.page_len, dtype=self.dtype
        )
        for full, new_len, table in zip(self.full, new_lens, self.tables, strict=True):
            for position in range(full.shape[2] - new_len):
                slot = table[position // self.page_len] * self.page_len + position % self.page_len
                self.kv[slot] = full[:, :, position]
        new = torch.cat(
            [full[:, :, -n:] for full, n in zip(self.full, new_lens, strict=True)], dim=2
        )
        q = torch.randn(1, H, sum(new_lens), D, generator=self.generator).to(self.dtype)
        write_pages(self.kv, plan, new[None, 0], new[None, 1])
        out = paged_attention(q, new[None, 0], new[None, 1], self.kv, plan)
        assert out.shape == q.shape
        assert out.dtype == q.dtype
        expected, row = [], 0
        for full, n in zip(self.full, new_lens, strict=True):
            expected.append(naive(q[0, :, row : row + n], full[0], full[1]))
            row += n
        return out[0], torch.cat(expected, dim=1), plan


@pytest.mark.parametrize(("dtype", "atol"), TOLERANCES)
@pytest.mark.parametrize("neighbours", [False, True])
@pytest.mark.parametrize(
    ("new_lens", "contexts"),
    [
        ([1], [1]),
        ([1], [37]),
        ([5], [5]),
        ([5], [21]),
        ([1, 1, 1], [1, 33, 16]),
        ([1, 1], [3, 700]),  # too different to pad
        ([1, 1, 7, 4, 1], [9, 17, 7, 20, 2]),
        ([2, 1, 16], [2, 8, 32]),
    ],
)
def test_equals_naive_attention(new_lens, contexts, neighbours, dtype, atol):
    cache = Cache(contexts, G=2, D=8, page_len=4, dtype=dtype, neighbours=neighbours)
    got, expected, _ = cache.attend(new_lens, H=6)
    assert (got.double() - expected).abs().max() < atol


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_equals_naive_attention_on_any_shape(data):
    group = data.draw(st.integers(1, 3))
    G = data.draw(st.integers(1, 3))
    D = data.draw(st.sampled_from([4, 8, 12]))
    page_len = data.draw(st.integers(1, 9))
    contexts = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=5))
    new_lens = [data.draw(st.integers(1, length)) for length in contexts]
    cache = Cache(contexts, G=G, D=D, page_len=page_len, dtype=torch.float32)
    got, expected, _ = cache.attend(new_lens, H=G * group)
    assert (got.double() - expected).abs().max() < 2e-5


def test_decodes_of_similar_length_share_a_call_and_neighbouring_pages_are_not_copied():
    plan = plan_attention(
        [1, 1, 1, 3],
        [300, 310, 2000, 9],
        [list(range(0, 40, 2)), list(range(1, 41, 2)), list(range(41, 166)), [200]],
        page_len=16,
        dtype=torch.float32,
    )
    assert [span.num_seqs for span in plan.spans] == [2, 1, 1]
    assert plan.spans[0].pages is not None
    assert plan.spans[1].pages is None
    assert plan.spans[1].first_slot == 41 * 16


@pytest.mark.parametrize(
    ("new_lens", "contexts"), [([0], [4]), ([5], [4]), ([1], [9]), ([1, 1], [4])]
)
def test_lengths_that_do_not_fit_are_refused(new_lens, contexts):
    with pytest.raises(ValueError, match=r"new tokens of|shorter|longer"):
        plan_attention(new_lens, contexts, [[0]], page_len=8, dtype=torch.float32)


def test_shapes_that_do_not_fit_the_plan_are_refused():
    plan = plan_attention([2], [2], [[0]], page_len=8, dtype=torch.float32)
    kv = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match="plan of 2 tokens"):
        paged_attention(torch.zeros(1, 4, 3, 4), kv, kv, torch.zeros(8, 2, 2, 4), plan)
