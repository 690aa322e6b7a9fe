import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.kernels.paged_attention import (
    paged_attention,
    paged_attention_twin,
    write_kv,
    write_kv_twin,
)
from tests.kernels.guards import WITH_AND_WITHOUT_INTERPRETER, error, guarded, inside_nan

pytestmark = WITH_AND_WITHOUT_INTERPRETER

NOWHERE = 10**6
"""A page that does not exist, where the table has no page to name."""


class Pages:
    """Sequences in a cache whose other places are NaN, or 127 with a NaN scale.

    Args:
        lens: new tokens and all tokens of each sequence.
        G: key/value heads.
        D: their width.
        P: tokens a page.
        is_int8: whether the cache is.
    """

    def __init__(self, lens, G, D, P, *, is_int8):
        counts = [-(-total // P) for _, total in lens]
        number = sum(counts) + 3
        free = torch.randperm(number).tolist()
        self.table = torch.full((len(lens), max(1, *counts)), NOWHERE, dtype=torch.int32)
        empty = torch.full((number * P, 2, G, D), 127 if is_int8 else torch.nan)
        self.cache = empty.to(torch.int8) if is_int8 else empty
        self.scale = torch.full((number * P, 2, G), torch.nan) if is_int8 else None
        for seq, (count, (_, total)) in enumerate(zip(counts, lens, strict=True)):
            pages = [free.pop() for _ in range(count)]
            self.table[seq, :count] = torch.tensor(pages, dtype=torch.int32)
            at = torch.arange(total)
            slots = self.table[seq].long()[at // P] * P + at % P
            write_kv_twin(self.cache, self.scale, slots, *torch.randn(2, total, G, D))
        new = torch.tensor([new for new, _ in lens])
        self.cu_new = torch.cat((torch.zeros(1), new.cumsum(0))).int()
        self.context_lens = torch.tensor([total for _, total in lens], dtype=torch.int32)
        self.page_len = P

    def arguments(self, q):
        return q, self.cache, self.scale, self.table, self.context_lens, self.cu_new


def check(lens, H, G, D, P, *, is_int8=False, split_len=0, dtype=torch.float32, **options):
    torch.manual_seed(0)
    pages = Pages(lens, G, D, P, is_int8=is_int8)
    if not is_int8:
        pages.cache = pages.cache.to(dtype)
    q = inside_nan(torch.randn(sum(new for new, _ in lens), H, D, dtype=dtype))
    with guarded():
        found = paged_attention(*pages.arguments(q), page_len=P, split_len=split_len, **options)
    expected = paged_attention_twin(
        *pages.arguments(q), P, 0, D**-0.5, options.get("window", 0), options.get("softcap", 0.0)
    )
    assert found.dtype == dtype
    assert error(found, expected) <= (1e-6 if dtype == torch.float32 else 2e-3)
    return found


@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize("split_len", [0, 128])
@pytest.mark.parametrize(
    ("lens", "heads", "D", "P"),
    [
        ([(1, 1)], (2, 1), 16, 4),
        ([(1, 5), (1, 300), (1, 17)], (4, 2), 16, 16),
        ([(7, 7), (1, 40), (30, 190)], (3, 1), 16, 8),
        ([(5, 20), (1, 33)], (9, 3), 40, 8),
        ([(1, 129), (1, 128)], (4, 4), 64, 16),
        ([(70, 70), (1, 1), (2, 260)], (2, 2), 16, 32),
    ],
)
def test_prompts_and_single_tokens_are_those_of_the_twin(lens, heads, D, P, split_len, is_int8):
    check(lens, heads[0], heads[1], D, P, is_int8=is_int8, split_len=split_len)


@pytest.mark.parametrize("split_len", [0, 128])
@pytest.mark.parametrize(
    "options", [{"window": 1}, {"window": 9}, {"window": 200}, {"softcap": 2.0}]
)
def test_options(options, split_len):
    check([(1, 300), (20, 150)], 9, 3, 16, 16, split_len=split_len, **options)


def test_half_precision():
    check([(1, 40), (12, 30)], 4, 2, 64, 16, dtype=torch.float16)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_lengths_and_pages(data):
    totals = data.draw(st.lists(st.integers(1, 150), min_size=1, max_size=5))
    lens = [(data.draw(st.integers(1, min(total, 40))), total) for total in totals]
    check(
        lens, 4, 2, 16, data.draw(st.sampled_from([1, 3, 16])),
        is_int8=data.draw(st.booleans()), split_len=data.draw(st.sampled_from([0, 128])),
    )  # fmt: skip


def test_sequences_with_nothing_new_are_left_out():
    torch.manual_seed(0)
    pages = Pages([(0, 20), (3, 9), (0, 5), (1, 17)], 1, 16, 4, is_int8=False)
    q = torch.randn(4, 2, 16)
    found = paged_attention(*pages.arguments(q), page_len=4)
    expected = paged_attention_twin(*pages.arguments(q), 4, 0, 0.25, 0, 0.0)
    assert error(found, expected) <= 1e-6


def test_a_result_does_not_depend_on_the_other_sequences():
    torch.manual_seed(0)
    pages = Pages([(1, 300), (20, 150), (1, 40)], 2, 16, 16, is_int8=False)
    q = torch.randn(22, 4, 16)
    together = paged_attention(*pages.arguments(q), page_len=16, split_len=128)
    for seq, (first, last) in enumerate(zip(pages.cu_new[:-1], pages.cu_new[1:], strict=True)):
        length = int(last - first)
        alone = paged_attention(
            q[first:last], pages.cache, None, pages.table[seq : seq + 1],
            pages.context_lens[seq : seq + 1], torch.tensor([0, length], dtype=torch.int32),
            page_len=16, split_len=128,
        )  # fmt: skip
        torch.testing.assert_close(together[first:last], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize(("G", "D"), [(1, 16), (3, 40), (2, 64)])
def test_writing_touches_its_slots_only(G, D, is_int8):
    torch.manual_seed(0)
    slots = torch.tensor([7, -1, 0, 12])
    k, v = (inside_nan(torch.randn(4, G, D)) for _ in range(2))
    k[0, 0] = 0  # a scale of zero
    wide = torch.zeros(17, 2, G, D, dtype=torch.int8) if is_int8 else torch.full((17, 2, G, D), 5.0)
    scale = torch.full((17, 2, G), 3.0) if is_int8 else None
    found, found_scale = wide.clone(), None if scale is None else scale.clone()
    write_kv(found[2:15], None if found_scale is None else found_scale[2:15], slots, k, v)
    write_kv_twin(wide[2:15], None if scale is None else scale[2:15], slots, k, v)
    assert torch.equal(found, wide)
    if found_scale is not None and scale is not None:
        assert torch.equal(found_scale, scale)


def test_operators_are_what_pytorch_expects():
    pages = Pages([(1, 9), (3, 7)], 1, 16, 4, is_int8=True)
    q = torch.randn(4, 2, 16)
    pages.table[pages.table == NOWHERE] = 0  # read nowhere, but traced
    torch.library.opcheck(
        torch.ops.llmlab.paged_attention.default, (*pages.arguments(q), 4, 0, 0.25, 0, 0.0)
    )
    k, v = torch.randn(2, 3, 1, 16)
    cache, scale = torch.zeros(8, 2, 1, 16, dtype=torch.int8), torch.zeros(8, 2, 1)
    torch.library.opcheck(
        torch.ops.llmlab.write_kv.default, (cache, scale, torch.tensor([0, 3, 5]), k, v)
    )
