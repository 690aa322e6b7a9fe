"""Choose tokens: temperature, top-k, top-p, min-p and one draw for each row.

Every filter keeps what is at least as likely as some token, equal tokens alike, so that no order
among them is needed. The draw is the inverse of the cumulative distribution, in the order of the
vocabulary. Not here: penalties, biases, where the random numbers come from (llmlab.model.sampling).
Sources: arXiv:1904.09751 (top-p), arXiv:2407.01082 (min-p).
"""

import torch
from torch import Tensor

from llmlab.kernels.op import define


def sample_tokens(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, draw: Tensor
) -> Tensor:
    """Choose one token for each row; a row's result does not depend on the others.

    Args:
        logits: (B, V), floating.
        temperature: (B,), float32, divides the logits; 0 takes the most likely token.
        top_k: (B,), int32, keeps the k most likely; 0 keeps all.
        top_p: (B,), float32, keeps of these the fewest most likely whose probabilities reach p
            parts of theirs; 1 keeps all.
        min_p: (B,), float32, keeps tokens at least so many times as likely as the most likely.
        draw: (B,), float32, random numbers in [0, 1).

    Returns:
        (B,), int64.
    """
    return _sample_tokens(logits, temperature, top_k, top_p, min_p, draw)


def sample_tokens_twin(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, draw: Tensor
) -> Tensor:
    """Compute `sample_tokens` in plain PyTorch."""
    wide = logits.float()
    likeliest = wide.argmax(-1)  # (B,)
    divisor = torch.where(temperature > 0, temperature, 1.0)[:, None]
    parts = ((wide - wide.amax(-1, keepdim=True)) / divisor).exp()  # (B, V), of the likeliest's
    V = parts.shape[1]
    falling = parts.sort(dim=-1, descending=True).values
    last = torch.where(top_k > 0, top_k.long().clamp(max=V), V)[:, None] - 1
    least = falling.gather(1, last)  # (B, 1)
    mass = falling.masked_fill(falling < least, 0).cumsum(-1, dtype=torch.float64)
    wanted = top_p.double()[:, None] * mass[:, -1:]
    last = (mass < wanted).sum(-1, keepdim=True).clamp(max=V - 1)
    nucleus = torch.where(top_p[:, None] < 1, falling.gather(1, last), 0.0)
    least = torch.maximum(torch.maximum(least, nucleus), min_p[:, None])
    mass = parts.masked_fill(parts < least, 0).cumsum(-1, dtype=torch.float64)
    drawn = (mass <= draw.double()[:, None] * mass[:, -1:]).sum(-1)
    return torch.where(temperature > 0, drawn, likeliest)


def _fake(logits: Tensor, *_: Tensor) -> Tensor:
    return logits.new_empty(logits.shape[:1], dtype=torch.int64)


_sample_tokens = define(
    "sample_tokens(Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p, "
    "Tensor draw) -> Tensor",
    twin=sample_tokens_twin,
    fake=_fake,
    kernel="sample_triton:sample_tokens",
    native="sample_native:sample_tokens",
)
