"""Packed rows: attention that stays inside each document, positions that restart with it.

On a CPU the work is less than that of whole rows, and no mask is built (document_attention.py). On
a GPU a block mask leaves out what lies between documents (torch's flex_attention). Not here: which
documents share a row (llmlab/data).
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from llmlab.kernels.precision import product_dtype
from llmlab.model.attention import Attend
from llmlab.model.document_attention import document_attention, document_starts


def restarting_positions(document_ids: Tensor) -> Tensor:
    """Return each token's position in its document.

    Args:
        document_ids: (B, T), whole numbers; neighbours of one document are equal.

    Returns:
        (B, T), int64, from 0.
    """
    index = torch.arange(document_ids.shape[1], device=document_ids.device).expand_as(document_ids)
    return index - torch.where(document_starts(document_ids), index, 0).cummax(dim=1).values


def within_documents(document_ids: Tensor, windows: Sequence[int | None]) -> Attend:
    """Return attention from every position to itself and those before it in its document.

    Args:
        document_ids: (B, T), as of `restarting_positions`.
        windows: for each layer the tokens that a position sees, itself included; None for all.
    """
    if document_ids.device.type != "cuda":
        return _CutApart(document_ids, tuple(windows))
    masks = {window: block_mask(document_ids, window) for window in set(windows)}
    return _BlockMasked(masks, tuple(windows))


@dataclass(frozen=True)
class _CutApart:
    """Attention document by document."""

    document_ids: Tensor
    windows: tuple[int | None, ...]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        dtype = product_dtype(q)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
        return document_attention(q, k, v, self.document_ids, self.windows[layer])


@dataclass(frozen=True)
class _BlockMasked:
    """Attention over whole rows that skips the blocks between documents."""

    masks: dict[int | None, BlockMask]
    windows: tuple[int | None, ...]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attend = flex_attention if torch.compiler.is_compiling() else _compiled_flex_attention()
        mask = self.masks[self.windows[layer]]
        return attend(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])


def block_mask(document_ids: Tensor, window: int | None) -> BlockMask:
    """Return which blocks of keys a block of queries meets, for flex_attention.

    Args:
        document_ids: (B, T).
        window: positions seen, the query's own included; None for all.
    """
    B, T = document_ids.shape

    def may_attend(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = document_ids[batch, query] == document_ids[batch, key]
        near = key > query - (window or T)
        return same & near & (key <= query)

    return create_block_mask(may_attend, B, None, T, T, device=document_ids.device)


@functools.cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    return torch.compile(flex_attention)  # uncompiled, it builds the whole matrix of scores
