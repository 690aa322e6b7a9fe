"""Memory in which a kernel's slips show: bands that must stay, NaN where nothing was written."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from llmlab.kernels.op import INTERPRETED

WITH_AND_WITHOUT_INTERPRETER = [pytest.mark.interpreter] if INTERPRETED else []
"""Marks tests of what is C++ on a CPU, and Triton under its interpreter: `pytestmark` of a file."""

_BAND = 4096
"""Elements before and behind."""

_MARK = 77


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Allocate what kernels write to between two bands; fail if a band changed.

    What is allocated is full of NaN, or of 77 where it holds whole numbers, so that a place that is
    left out shows in the result.
    """
    made: list[Tensor] = []

    def empty(*size: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
        shape = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
        length = math.prod(shape)
        whole = torch.full((length + 2 * _BAND,), _MARK, dtype=dtype, device=device)
        inside = whole[_BAND : _BAND + length]
        if dtype.is_floating_point:
            inside.fill_(torch.nan)
        made.append(whole)
        return inside.view(shape)

    def empty_like(x: Tensor, *, dtype: torch.dtype | None = None, **_: object) -> Tensor:
        return empty(*x.shape, dtype=dtype or x.dtype, device=x.device)

    with patch("torch.empty", empty), patch("torch.empty_like", empty_like):
        yield
    for whole in made:
        bands = torch.cat((whole[:_BAND], whole[-_BAND:]))
        assert (bands == _MARK).all(), "a kernel wrote before or behind its result"


def inside_nan(x: Tensor) -> Tensor:
    """Return the same numbers as a strided part of a larger tensor full of NaN."""
    wide = torch.full([n + 3 for n in x.shape], torch.nan, dtype=x.dtype)
    part = wide[tuple(slice(1, n + 1) for n in x.shape)]
    part.copy_(x.detach())
    return part.requires_grad_(x.requires_grad)


def error(found: Tensor, expected: Tensor) -> float:
    """Return the root mean square of the difference over that of what is expected."""
    assert found.shape == expected.shape
    found, expected = found.detach().double(), expected.detach().double()
    assert torch.isfinite(found).all()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))
