"""One batch of training: what the model reads and what it is scored on.

Not here: where batches come from (batches.py, llmlab/finetune).
"""

from typing import NamedTuple

import torch
from torch import Tensor

IGNORED = -100
"""Label of a position that is not scored."""


class Batch(NamedTuple):
    """B rows of T positions: `model.loss_sum(*batch.arguments)`."""

    input_ids: Tensor
    """int64 (B, T)."""

    labels: Tensor
    """int64 (B, T), already shifted: position t is scored on labels[:, t], unless it is -100."""

    document_ids: Tensor | None = None
    """int32 (B, T), never falling along a row: positions of equal number may attend to one another.
    None lets a row attend across its documents. Padding counts as a document of its own."""

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        """`(input_ids, labels)`, and document_ids where there are some."""
        return tuple(tensor for tensor in self if tensor is not None)

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self.arguments))
