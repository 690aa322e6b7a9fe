"""Root-mean-square normalisation. Source: arXiv:1910.07467."""

import torch
from torch import Tensor, nn

from llmlab.kernels.norm import rms_norm


class RMSNorm(nn.Module):
    """Divide by the root mean square, computed in float32, and scale by a learned weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension; the dtype stays that of x."""
        return rms_norm(x, self.weight, self.eps)
