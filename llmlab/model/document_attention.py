"""Attention inside the documents of packed rows on a CPU: one operation, forward and backward.

Rows are cut at the documents' borders, and each document is attended to by itself with torch's
flash kernel, in blocks where a window leaves out most of it. To the compiler all of it is one
operation with shapes that do not depend on where the borders are. Not here: the mask that GPUs use
(documents.py).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

_MIN_BLOCK_LEN = 128

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def document_attention(
    q: Tensor, k: Tensor, v: Tensor, document_ids: Tensor, window: int | None
) -> Tensor:
    """Attend causally inside documents.

    Args:
        q: (B, H, T, D).
        k: (B, G, T, D).
        v: (B, G, T, D).
        document_ids: (B, T), whole numbers; neighbours of one document are equal.
        window: positions seen, the query's own included; None for all.

    Returns:
        (B, H, T, D). Gradients are computed in float32 at least: in bfloat16 the kernel takes a
        millisecond more for every piece.
    """
    return _attention(q, k, v, document_ids, window or 0)[0].transpose(1, 2)


def document_lens(document_ids: Tensor) -> list[int]:
    """Return how many tokens each document has in its row, row after row."""
    starts = document_starts(document_ids).flatten().nonzero().flatten()
    ends = torch.cat((starts[1:], starts.new_tensor([document_ids.numel()])))
    return (ends - starts).tolist()


def document_starts(document_ids: Tensor) -> Tensor:
    """Return whether a document begins at a position: (B, T), bool; each row begins one."""
    first = torch.ones_like(document_ids[:, :1], dtype=torch.bool)
    return torch.cat((first, document_ids[:, 1:] != document_ids[:, :-1]), dim=1)


class _Piece(NamedTuple):
    """Queries of one document in one row, and the keys they attend to."""

    row: int
    queries: slice
    keys: slice
    window: int
    """Positions seen; 0 for all."""

    def of(self, x: Tensor, part: slice) -> Tensor:
        """Return (1, H, length, D) of x (B, H, T, D)."""
        return x[self.row : self.row + 1, :, part]

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """Return what is added to the scores (queries, keys); None where causality is enough."""
        if not self.window or self.keys.stop - self.keys.start <= self.window:
            return None
        queries = torch.arange(self.queries.start, self.queries.stop)[:, None]
        keys = torch.arange(self.keys.start, self.keys.stop)[None]
        seen = (keys <= queries) & (keys > queries - self.window)
        return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -torch.inf)


def _pieces(document_ids: Tensor, window: int) -> Iterator[_Piece]:
    T = document_ids.shape[1]
    at = 0
    for length in document_lens(document_ids):
        row, first = divmod(at, T)
        at += length
        step = max(window, _MIN_BLOCK_LEN) if window else length
        for start in range(0, length, step):
            # A query in a block sees no further back than the block before.
            queries = slice(first + start, first + min(start + step, length))
            keys = slice(first + max(0, start - step), queries.stop)
            yield _Piece(row, queries, keys, window)


@torch.library.custom_op("llmlab::document_attention", mutates_args=())
def _attention(
    q: Tensor, k: Tensor, v: Tensor, document_ids: Tensor, window: int
) -> tuple[Tensor, Tensor]:
    """Return the result (B, T, H, D) and the logarithm of each softmax's normaliser (B, H, T)."""
    B, H, T, D = q.shape
    out, normaliser = q.new_empty(B, T, H, D), _normaliser(q)
    for piece in _pieces(document_ids, window):
        mask = piece.mask(q.dtype)
        part, part_normaliser = _flash(
            piece.of(q, piece.queries),
            piece.of(k, piece.keys),
            piece.of(v, piece.keys),
            is_causal=mask is None,
            attn_mask=mask,
        )
        out[piece.row, piece.queries] = part[0].transpose(0, 1)
        normaliser[piece.row, :, piece.queries] = part_normaliser[0]
    return out, normaliser


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, document_ids: Tensor, window: int) -> tuple[Tensor, Tensor]:
    B, H, T, D = q.shape
    return q.new_empty(B, T, H, D), _normaliser(q)


def _normaliser(q: Tensor) -> Tensor:
    return q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))


@torch.library.custom_op("llmlab::document_attention_backward", mutates_args=())
def _attention_backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    document_ids: Tensor,
    out: Tensor,
    normaliser: Tensor,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    gradient, out = gradient.transpose(1, 2), out.transpose(1, 2)  # (B, H, T, D)
    wide = normaliser.dtype
    q_grad = q.new_empty(q.shape, dtype=wide)
    k_grad, v_grad = k.new_zeros(k.shape, dtype=wide), v.new_zeros(v.shape, dtype=wide)
    for piece in _pieces(document_ids, window):
        mask = piece.mask(wide)
        parts = _flash_backward(
            piece.of(gradient, piece.queries).to(wide),
            piece.of(q, piece.queries).to(wide),
            piece.of(k, piece.keys).to(wide),
            piece.of(v, piece.keys).to(wide),
            piece.of(out, piece.queries).to(wide),
            piece.of(normaliser, piece.queries),
            dropout_p=0.0,
            is_causal=mask is None,
            attn_mask=mask,
        )
        piece.of(q_grad, piece.queries).copy_(parts[0])
        piece.of(k_grad, piece.keys).add_(parts[1])
        piece.of(v_grad, piece.keys).add_(parts[2])
    return q_grad.to(q.dtype), k_grad.to(k.dtype), v_grad.to(v.dtype)


@_attention_backward.register_fake
def _(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    document_ids: Tensor,
    out: Tensor,
    normaliser: Tensor,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.window = inputs
    ctx.save_for_backward(*tensors, *output)


def _gradients(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_attention_backward(gradient, *ctx.saved_tensors, ctx.window), None, None


_attention.register_autograd(_gradients, setup_context=_keep)
