"""Attention for training and whole prompts: causal or full, grouped heads, packed documents.

`attention_twin` says in a few lines of PyTorch what is computed; on a GPU the Triton kernels
of attention_triton.py compute it without the (T, T) matrix. Not here: attention over a cache
(paged_attention.py).
"""

import torch
from torch import Tensor

from llmlab.kernels.op import define
from llmlab.kernels.precision import wide_dtype

MOST_WIDE = 256
"""Head dim."""


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Attend; softmax and sums are in float32 (float64 where q is).

    Args:
        q: (B, H, T, D).
        k: (B, G, T, D), H a multiple of G; head h reads key/value head h // (H / G).
        v: (B, G, T, D).
        causal: whether a position sees none after it.
        scale: of the products; D ** -0.5 when None.
        window: tokens a position sees, its own included; with causal only. None for all.
        softcap: scores are softcap * tanh(score / softcap); None leaves them.
        cu_seqlens: where documents start in the B·T tokens, row after row, with B·T last:
            (documents + 1,), int32, rising; every row starts one. Documents do not see each other.
            None: each row is one.

    Returns:
        (B, H, T, D), dtype of q.

    Raises:
        ValueError: shapes or options do not go together.
    """
    _check(q, k, v, causal=causal, window=window, cu_seqlens=cu_seqlens)
    options = (causal, q.shape[-1] ** -0.5 if scale is None else scale, window or 0, softcap or 0.0)
    return _attention(q, k, v, cu_seqlens, *options)[0]


def attention_twin(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor | None,
    causal: bool,
    scale: float,
    window: int,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    """Return the result and, for each query, log2 of the sum of its exponentials (B, H, T)."""
    dtype = wide_dtype(q)
    scores, keys, values = _scores(q, k, v, scale, dtype)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(_hidden(q, cu_seqlens, causal, window), -torch.inf)
    out = scores.softmax(-1) @ values
    return out.to(q.dtype), scores.logsumexp(-1) / _LN_2


def attention_backward_twin(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor | None,
    causal: bool,
    scale: float,
    window: int,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v."""
    dtype, (B, G, T, D) = lse.dtype, k.shape
    scores, keys, values = _scores(q, k, v, scale, dtype)
    slope = torch.ones_like(scores)
    if softcap:
        tanh = torch.tanh(scores / softcap)
        scores, slope = softcap * tanh, 1 - tanh.square()
    hidden = _hidden(q, cu_seqlens, causal, window)
    weights = torch.exp(scores - lse[..., None] * _LN_2).masked_fill(hidden, 0.0)
    d_out = d_out.to(dtype)
    delta = (d_out * out.to(dtype)).sum(-1, keepdim=True)
    d_scores = weights * (d_out @ values.transpose(-1, -2) - delta) * slope * scale
    d_q = d_scores @ keys
    d_k = (d_scores.transpose(-1, -2) @ q.to(dtype)).view(B, G, -1, T, D).sum(2)
    d_v = (weights.transpose(-1, -2) @ d_out).view(B, G, -1, T, D).sum(2)
    return d_q.to(q.dtype), d_k.to(k.dtype), d_v.to(v.dtype)


_LN_2 = 0.6931471805599453


def _scores(
    q: Tensor, k: Tensor, v: Tensor, scale: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return scaled products (B, H, T, T), keys and values (B, H, T, D)."""
    group = q.shape[1] // k.shape[1]
    keys, values = (x.repeat_interleave(group, dim=1).to(dtype) for x in (k, v))
    return q.to(dtype) @ keys.transpose(-1, -2) * scale, keys, values


def _hidden(q: Tensor, cu_seqlens: Tensor | None, causal: bool, window: int) -> Tensor:
    """Return which keys a query does not see: (T, T) or (B, 1, T, T), bool."""
    B, _, T, _ = q.shape
    at = torch.arange(T, device=q.device)
    hidden = at > at[:, None] if causal else torch.zeros(T, T, dtype=torch.bool, device=q.device)
    if window:
        hidden = hidden | (at <= at[:, None] - window)
    if cu_seqlens is None:
        return hidden
    tokens = torch.arange(B * T, device=q.device, dtype=cu_seqlens.dtype)
    document = torch.searchsorted(cu_seqlens, tokens, right=True).view(B, 1, T)
    return hidden | (document[..., None] != document[..., None, :])


def _check(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, window: int | None, cu_seqlens: Tensor | None
) -> None:
    B, H, T, D = q.shape
    if k.shape != v.shape or k.shape != (B, k.shape[1], T, D) or H % k.shape[1]:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not fit; k and v "
            "are (B, G, T, D) with H a multiple of G"
        )
    if D > MOST_WIDE:
        raise ValueError(f"head dim {D}; it must be {MOST_WIDE} or less")
    if window is not None and (window < 1 or not causal):
        raise ValueError(f"window={window} with causal={causal}; it must be 1 or more, and causal")
    if cu_seqlens is not None and cu_seqlens.dtype != torch.int32:
        raise ValueError(f"cu_seqlens is {cu_seqlens.dtype}; it must be torch.int32")


def _fake(q: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=wide_dtype(q))


def _fake_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: object
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx, inputs, output) -> None:
    q, k, v, cu_seqlens, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, cu_seqlens, *output)


def _backward(ctx, d_out, _):
    q, k, v, cu_seqlens, out, lse = ctx.saved_tensors
    found = _attention_backward(d_out, q, k, v, out, lse, cu_seqlens, *ctx.options)
    return *found, None, None, None, None, None


_OPTIONS = "Tensor? cu_seqlens, bool causal, float scale, int window, float softcap"
_attention_backward = define(
    "attention_backward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
    f"{_OPTIONS}) -> (Tensor, Tensor, Tensor)",
    twin=attention_backward_twin,
    fake=_fake_backward,
    kernel="attention_triton:attention_backward",
)
_attention = define(
    f"attention(Tensor q, Tensor k, Tensor v, {_OPTIONS}) -> (Tensor, Tensor)",
    twin=attention_twin,
    fake=_fake,
    kernel="attention_triton:attention_forward",
    backward=_backward,
    keep=_keep,
)
