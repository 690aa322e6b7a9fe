"""Orthogonalisation: the nearest matrix whose singular values are all 1, by matrix products only.

A Newton-Schulz iteration applies an odd polynomial to the singular values of a matrix and leaves
its singular vectors alone; a few such polynomials push every singular value towards 1. The ones
here are, step after step, the best approximations of 1 on the interval that the step before leaves
(Polar Express, arXiv:2505.16932). Four of them end within 0.22 of 1; the five equal steps of Muon's
first version (https://kellerjordan.github.io/posts/muon) end within 0.53 of it, for a quarter more
products.

Not here: which matrices, momentum and the update (muon.py).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Quintic = tuple[float, float, float]
"""a, b, c of a x + b x^3 + c x^5."""

_SAFETY = 1.01
"""Each step aims at values this much smaller, so that rounding in bfloat16 cannot push one above
the interval, where the polynomials grow without bound."""

SMALLEST = 3e-3
"""Singular values from this fraction of the Frobenius norm end near 1; smaller ones end smaller."""

# Minimax for 1 on [3e-3, 1], then on what each leaves; found by the Remez exchange in float64.
POLAR_EXPRESS: tuple[Quintic, ...] = tuple(
    (a / _SAFETY, b / _SAFETY**3, c / _SAFETY**5)
    for a, b, c in (
        (8.3837, -24.7659, 18.3571),
        (4.0434, -3.0114, 0.5695),
        (3.5056, -2.6267, 0.5257),
        (2.4901, -1.8343, 0.4368),
    )
)

_MOST_NUMBERS = 2**25
"""Numbers worked on at once: bounds the extra memory to about 4 x 64 MB in bfloat16."""


def orthogonalize(
    matrices: Sequence[Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    steps: Sequence[Quintic] = POLAR_EXPRESS,
) -> list[Tensor]:
    """Bring the singular values of each matrix close to 1.

    Matrices of one shape are stacked and go through the same few products; for the matrices of a
    small model this is several times as fast as one by one.

    Args:
        matrices: each (rows, columns), or (experts, rows, columns) for a stack of matrices.
        dtype: of the products; bfloat16 is enough.
        steps: the polynomials, in order.

    Returns:
        One result for each, with its shape, in `dtype`. Zeros stay zeros.
    """
    results: list[Tensor] = list(matrices)
    for numbers in _of_one_shape(matrices):
        stack = torch.cat([_as_stack(matrices[i]) for i in numbers])  # (K, rows, columns)
        done = _newton_schulz(stack, dtype, steps)
        depths = [_as_stack(matrices[i]).shape[0] for i in numbers]
        for i, piece in zip(numbers, done.split(depths), strict=True):
            results[i] = piece.view(matrices[i].shape)
    return results


def _of_one_shape(matrices: Sequence[Tensor]) -> list[list[int]]:
    """Positions of matrices that fit into one stack of at most `_MOST_NUMBERS`."""
    by_shape: dict[torch.Size, list[int]] = {}
    for i, matrix in enumerate(matrices):
        by_shape.setdefault(matrix.shape[-2:], []).append(i)
    stacks: list[list[int]] = []
    for same in by_shape.values():
        size = 0
        stacks.append([])
        for i in same:
            if stacks[-1] and size + matrices[i].numel() > _MOST_NUMBERS:
                stacks.append([])
                size = 0
            stacks[-1].append(i)
            size += matrices[i].numel()
    return stacks


def _as_stack(matrix: Tensor) -> Tensor:
    return matrix.view(-1, *matrix.shape[-2:])


def _newton_schulz(stack: Tensor, dtype: torch.dtype, steps: Sequence[Quintic]) -> Tensor:
    """Orthogonalise (K, rows, columns); the Gram matrices are of the shorter side."""
    tall = stack.shape[-2] > stack.shape[-1]
    norms = torch.linalg.vector_norm(stack, dim=(-2, -1), keepdim=True, dtype=torch.float32)
    scaled = (stack / (norms * _SAFETY).clamp(min=torch.finfo(torch.float32).tiny)).to(dtype)
    x = scaled.mT.contiguous() if tall else scaled  # (K, short, long)
    for a, b, c in steps:
        gram = x @ x.mT  # (K, short, short)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
