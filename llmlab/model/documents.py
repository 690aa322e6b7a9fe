"""Packed rows: attention that stays inside each document, positions that restart with it.

On a CPU the rows are cut at the documents' borders and every document is attended to by itself, so
the work is less than that of whole rows and no mask is built. Inside a compiled graph, whose shapes
are fixed, the same is one opaque operation. On a GPU a block mask leaves out what lies between
documents (torch's flex_attention). Not here: which documents share a row (llmlab/data).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from llmlab.model.attention import Attend, in_window
from llmlab.model.precision import product_dtype


def restarting_positions(document_ids: Tensor) -> Tensor:
    """Return each token's position in its document.

    Args:
        document_ids: (B, T), whole numbers; neighbours of one document are equal.

    Returns:
        (B, T), int64, from 0.
    """
    index = torch.arange(document_ids.shape[1], device=document_ids.device).expand_as(document_ids)
    return index - torch.where(_is_start(document_ids), index, 0).cummax(dim=1).values


def within_documents(document_ids: Tensor, windows: Sequence[int | None]) -> Attend:
    """Return attention from every position to itself and those before it in its document.

    Args:
        document_ids: (B, T), as of `restarting_positions`.
        windows: for each layer the tokens that a position sees, itself included; None for all.
    """
    if document_ids.device.type == "cuda":
        return _BlockMasked(document_ids, windows)
    return _CutApart(document_ids, windows)


def document_lens(document_ids: Tensor) -> list[int]:
    """Return how many tokens each document has in its row, row after row."""
    starts = _is_start(document_ids).flatten().nonzero().flatten()
    ends = torch.cat((starts[1:], starts.new_tensor([document_ids.numel()])))
    return (ends - starts).tolist()


def _is_start(document_ids: Tensor) -> Tensor:
    """Return whether a document begins at a position: (B, T), bool; each row begins one."""
    first = torch.ones_like(document_ids[:, :1], dtype=torch.bool)
    return torch.cat((first, document_ids[:, 1:] != document_ids[:, :-1]), dim=1)


class _CutApart:
    """Attention document by document."""

    def __init__(self, document_ids: Tensor, windows: Sequence[int | None]) -> None:
        self._document_ids, self._windows = document_ids, tuple(windows)
        self._lens = document_lens(document_ids)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        window = self._windows[layer]
        if not torch.compiler.is_compiling():
            return _cut_apart(q, k, v, self._lens, window).transpose(1, 2)
        dtype = product_dtype(q)
        out = _document_attention(
            q.to(dtype), k.to(dtype), v.to(dtype), self._document_ids, window or 0
        )
        return out.transpose(1, 2)


def _cut_apart(q: Tensor, k: Tensor, v: Tensor, lens: list[int], window: int | None) -> Tensor:
    """Attend document by document; the result is (B, T, H, D)."""
    B, H, T, D = q.shape
    queries, keys, values = (_one_row(x).split(lens, dim=2) for x in (q, k, v))
    out = [  # (1, length, H, D) each
        in_window(*part, window=window).transpose(1, 2)
        for part in zip(queries, keys, values, strict=True)
    ]
    return torch.cat(out, dim=1).view(B, T, H, D)


def _one_row(x: Tensor) -> Tensor:
    """Lay the rows of (B, H, T, D) one after the other: (1, H, B T, D)."""
    return x.transpose(1, 2).flatten(0, 1)[None].transpose(1, 2)


@torch.library.custom_op("llmlab::document_attention", mutates_args=())
def _document_attention(
    q: Tensor, k: Tensor, v: Tensor, document_ids: Tensor, window: int
) -> Tensor:
    return _cut_apart(q, k, v, document_lens(document_ids), window or None)


@_document_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, document_ids: Tensor, window: int) -> Tensor:
    B, H, T, D = q.shape
    return q.new_empty(B, T, H, D)


@torch.library.custom_op("llmlab::document_attention_backward", mutates_args=())
def _document_attention_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, document_ids: Tensor, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the forward pass again for its gradients; an operation keeps only its inputs."""
    with torch.enable_grad():
        q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
        out = _cut_apart(q, k, v, document_lens(document_ids), window or None)
    q_grad, k_grad, v_grad = torch.autograd.grad(out, (q, k, v), gradient)
    return q_grad.contiguous(), k_grad.contiguous(), v_grad.contiguous()


@_document_attention_backward.register_fake
def _(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, document_ids: Tensor, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.window = inputs
    ctx.save_for_backward(*tensors)


def _input_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    gradients = _document_attention_backward(gradient, *ctx.saved_tensors, ctx.window)
    return *gradients, None, None


_document_attention.register_autograd(_input_gradients, setup_context=_keep_inputs)


class _BlockMasked:
    """Attention over whole rows that skips the blocks between documents."""

    def __init__(self, document_ids: Tensor, windows: Sequence[int | None]) -> None:
        self._windows = tuple(windows)
        self._masks = {window: block_mask(document_ids, window) for window in set(windows)}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attend = flex_attention if torch.compiler.is_compiling() else _compiled_flex_attention()
        mask = self._masks[self._windows[layer]]
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
    return torch.compile(flex_attention)  # without, it builds the whole matrix of scores
