"""What autograd keeps between the forward and the backward pass."""

import torch
from torch import Tensor

from llmlab.model import LanguageModel


def kept_bytes(model: LanguageModel, input_ids: Tensor, labels: Tensor) -> int:
    """Bytes kept for the backward pass of a batch (B, T), parameters left out."""
    kept: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        model.loss(input_ids, labels)
    return sum(kept.values())
