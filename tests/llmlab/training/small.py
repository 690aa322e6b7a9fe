"""A tiny real model and a tiny real batch source."""

from typing import Any

import torch
from torch import Tensor

from llmlab.data.batch import Batch
from llmlab.model.build import build_model
from llmlab.model.config import ModelConfig
from llmlab.model.language_model import LanguageModel
from llmlab.training.distributed import rank, world_size

V, T = 32, 8


def small_model(
    seed: int = 0, *, tie: bool = True, architecture: str = "Qwen3ForCausalLM"
) -> LanguageModel:
    is_gpt2 = architecture == "GPT2LMHeadModel"
    torch.manual_seed(seed)
    return build_model(
        ModelConfig(
            architecture=architecture,
            vocab_size=V,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2 if is_gpt2 else 1,
            head_dim=8,
            hidden_act="gelu_new" if is_gpt2 else "silu",
            max_position_embeddings=T,
            tie_word_embeddings=tie,
        )
    )


class SmallBatches:
    """Batch i is a pure function of i; each row has another number of scored labels.

    Each rank gets its rows of the batch, all processes together `batch_size`.
    """

    def __init__(self, batch_size: int = 4, *, masked: bool = False) -> None:
        self.batch_size, self.masked, self.position = batch_size, masked, 0

    def next(self) -> Batch:
        """Return this rank's rows."""
        mine = slice(rank(), None, world_size())
        whole = self.whole()
        return Batch(whole.input_ids[mine], whole.labels[mine])

    def whole(self) -> Batch:
        """Return the rows of all ranks, and go on."""
        rows = [self.row(self.position + i) for i in range(self.batch_size)]
        self.position += self.batch_size
        windows = torch.stack(rows)
        input_ids, labels = windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
        if self.masked:
            for i, row in enumerate(labels):
                row[: (self.position + i) % T] = -100
        return Batch(input_ids, labels)

    def row(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(index)
        start = torch.randint(V, (1,), generator=generator)
        return (start + 3 * torch.arange(T + 1)) % V

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]
