"""Attention of packed tokens over a paged key/value cache, in plain PyTorch.

The tokens of one serving step lie packed in one row, sequence after sequence: `N` tokens, some
sequences with one new token (decoding), some with many (reading a prompt). `plan_attention` works
out once a step where each token is stored and what it may attend to; `write_pages` and
`paged_attention` then run once a layer.

The cache of a layer is `(num_pages * P, 2, G, D)`: a token's keys and values lie side by side, so
that a page is one block of memory to write and to gather, and a head of the gathered pages is a
strided view that `scaled_dot_product_attention` reads without a copy. Sequences with one new token
and similar lengths share one call; the query heads of a key/value head are packed as its query
rows, so grouped heads are never expanded.

Not here: who owns which page (serve/pages.py), models. Softmax and sums are in float32.
Source: PagedAttention, arXiv 2309.06180.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_PADDING_FLOOR = 256
"""Tokens of padding that cost less than one more call."""


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring packed tokens that one attention call serves: one chunk, or several decodes."""

    row: int
    """First packed token."""
    num_seqs: int
    """Sequences in it, of one packed token each; 1 for a chunk."""
    num_tokens: int
    """Packed tokens in it."""
    context_len: int
    """Tokens attended to, the new ones included; the longest of the sequences."""
    first_slot: int | None
    """Where the context starts in the cache when its pages are neighbours; else None."""
    pages: Tensor | None
    """(num_seqs * pages of the longest,) int64: the pages to gather, 0 where a sequence has fewer;
    None when nothing needs gathering."""
    mask: Tensor | None
    """Added to the scores, (num_seqs, 1, 1, S) for decodes, (1, 1, T, S) for a chunk; None where it
    would be all zero, or plainly causal."""


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """Where the packed tokens of a step are stored and what they attend to, for every layer."""

    num_tokens: int
    page_len: int
    slots: Tensor
    """(N,) int64: the row of the cache that each packed token is written to."""
    spans: tuple[Span, ...]


def plan_attention(
    new_lens: Sequence[int],
    context_lens: Sequence[int],
    page_tables: Sequence[Sequence[int]],
    *,
    page_len: int,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> AttentionPlan:
    """Lay out one step. Decodes are cheapest when they are neighbours, in order of length.

    Args:
        new_lens: new tokens of each sequence, at least 1, in packing order.
        context_lens: tokens of each sequence once these are written, so that the new ones hold the
            positions `context_len - new_len` to `context_len - 1`.
        page_tables: for each sequence the pages that hold its tokens, in order.
        page_len: tokens per page.
        dtype: type of the queries.
        device: where the cache is.

    Raises:
        ValueError: lengths that do not fit together.
    """
    slots: list[int] = []
    for new_len, context_len, pages in zip(new_lens, context_lens, page_tables, strict=True):
        if not 1 <= new_len <= context_len <= len(pages) * page_len:
            raise ValueError(
                f"{new_len} new tokens of {context_len} in {len(pages)} pages of {page_len}"
            )
        slots += [
            pages[position // page_len] * page_len + position % page_len
            for position in range(context_len - new_len, context_len)
        ]
    spans: list[Span] = []
    at = row = 0
    while at < len(new_lens):
        count = _num_alike(new_lens, context_lens, at)
        tables, lens = page_tables[at : at + count], context_lens[at : at + count]
        spans.append(_span(row, new_lens[at], lens, tables, page_len, dtype, device))
        row += spans[-1].num_tokens
        at += count
    return AttentionPlan(
        num_tokens=row,
        page_len=page_len,
        slots=torch.tensor(slots, device=device),
        spans=tuple(spans),
    )


def write_pages(cache: Tensor, plan: AttentionPlan, k: Tensor, v: Tensor) -> None:
    """Store the keys and values of a step.

    Args:
        cache: (num_pages * P, 2, G, D), changed in place.
        plan: the step.
        k: (1, G, N, D).
        v: (1, G, N, D).
    """
    kv = torch.stack((k[0], v[0])).permute(2, 0, 1, 3)  # (N, 2, G, D)
    cache.index_copy_(0, plan.slots, kv)


def paged_attention(q: Tensor, k: Tensor, v: Tensor, cache: Tensor, plan: AttentionPlan) -> Tensor:
    """Attend from the packed tokens to their sequences' pages, causally, scaled by 1/sqrt(D).

    Args:
        q: (1, H, N, D); H is a multiple of G, head h reads key/value head h // (H / G).
        k: (1, G, N, D), already written to the cache; read here by chunks that start a sequence.
        v: (1, G, N, D).
        cache: (num_pages * P, 2, G, D).
        plan: the step.

    Returns:
        (1, H, N, D)

    Raises:
        ValueError: the shapes do not fit the plan.
    """
    _, H, N, D = q.shape
    G = cache.shape[2]
    if plan.num_tokens != N or H % G or cache.shape[3] != D:
        raise ValueError(
            f"q {tuple(q.shape)} does not fit a plan of {plan.num_tokens} tokens "
            f"and a cache {tuple(cache.shape)}"
        )
    out = q.new_empty(N, G, H // G, D)
    for span in plan.spans:
        rows = slice(span.row, span.row + span.num_tokens)
        queries = q[0, :, rows].view(G, H // G, span.num_tokens, D)  # (G, R, T, D)
        if span.num_tokens > span.num_seqs:
            if span.num_tokens == span.context_len:
                keys, values = k[0, :, rows], v[0, :, rows]  # (G, T, D)
            else:
                keys, values = _context(cache, span, plan.page_len)[0]  # (G, S, D)
            out[rows] = _chunk(queries, keys, values, span.mask).permute(2, 0, 1, 3)
        else:
            keys, values = _context(cache, span, plan.page_len).unbind(1)  # (num_seqs, G, S, D)
            out[rows] = F.scaled_dot_product_attention(
                queries.permute(2, 0, 1, 3), keys, values, attn_mask=span.mask
            )  # (num_seqs, G, R, D)
    return out.view(1, N, H, D).transpose(1, 2)


def _num_alike(new_lens: Sequence[int], context_lens: Sequence[int], at: int) -> int:
    """Return how many sequences from `at` on share one call: decodes that need little padding."""
    if new_lens[at] > 1:
        return 1
    shortest = longest = context_lens[at]
    end = at + 1
    while end < len(new_lens) and new_lens[end] == 1:
        shortest, longest = min(shortest, context_lens[end]), max(longest, context_lens[end])
        if longest > 2 * shortest + _PADDING_FLOOR:
            break
        end += 1
    return end - at


def _span(
    row: int,
    new_len: int,
    context_lens: Sequence[int],
    tables: Sequence[Sequence[int]],
    page_len: int,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Span:
    longest, num_seqs = max(context_lens), len(context_lens)
    num_pages = -(-longest // page_len)
    first, pages, mask = None, None, None
    if new_len < longest or new_len == 1:
        used = tables[0][:num_pages]
        if num_seqs == 1 and used == list(range(used[0], used[0] + num_pages)):
            first = used[0] * page_len
        else:
            padded = [[*table[:num_pages], *[0] * (num_pages - len(table))] for table in tables]
            pages = torch.tensor(padded, device=device).flatten()
        if new_len > 1:
            mask = _causal_tail(new_len, longest)
        elif num_seqs > 1:
            mask = torch.arange(longest) >= torch.tensor(context_lens).view(-1, 1, 1, 1)
    if mask is not None:
        mask = torch.zeros(mask.shape, dtype=dtype).masked_fill_(mask, -torch.inf).to(device)
    return Span(row, num_seqs, num_seqs * new_len, longest, first, pages, mask)


def _causal_tail(T: int, S: int) -> Tensor:
    """Return which keys the last `T` of `S` tokens may not see, (1, 1, T, S) bool."""
    return torch.ones(1, 1, T, S, dtype=torch.bool).triu_(S - T + 1)


def _chunk(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Attend from many tokens of one sequence: (G, R, T, D) to (G, S, D)."""
    G, R, T, D = queries.shape
    return F.scaled_dot_product_attention(
        queries,
        keys.unsqueeze(1).expand(G, R, -1, D),  # a view: the R query heads share their keys
        values.unsqueeze(1).expand(G, R, -1, D),
        attn_mask=mask,
        is_causal=mask is None,
    )


def _context(cache: Tensor, span: Span, page_len: int) -> Tensor:
    """Return what a span attends to, (num_seqs, 2, G, S, D); a view where pages are neighbours."""
    _, _, G, D = cache.shape
    if span.pages is None:
        assert span.first_slot is not None
        kv = cache[span.first_slot : span.first_slot + span.context_len].unsqueeze(0)
    else:
        kv = cache.view(-1, page_len * 2 * G * D).index_select(0, span.pages)
        kv = kv.view(span.num_seqs, -1, 2, G, D)[:, : span.context_len]
    return kv.permute(0, 2, 3, 1, 4)
