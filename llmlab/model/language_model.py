"""What every language model here can do: token ids to hidden states, logits and loss.

Not here: the layers (transformer.py, gpt2.py), sampling, reading and writing files.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.errors import ModelError
from llmlab.model.attention import Attend, causal
from llmlab.model.config import ModelConfig
from llmlab.model.head_loss import IGNORED, head_loss_sum


class LanguageModel(nn.Module, ABC):
    """A decoder-only language model.

    A subclass names its parameters as Hugging Face does, so that weights load with
    `load_state_dict(strict=True)`. An untrained model's loss is ln V.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def hidden(
        self, input_ids: Tensor, positions: Tensor | None = None, attend: Attend = causal
    ) -> Tensor:
        """Return the states after the final norm.

        Args:
            input_ids: (B, T), int64.
            positions: (B, T) or (1, T) token positions; 0 ... T-1 when None.
            attend: the only thing that mixes positions.

        Returns:
            (B, T, E).
        """

    @abstractmethod
    def head_weight(self) -> Tensor:
        """Return the matrix (V, E) that turns hidden states into logits."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits (..., V) of hidden states (..., E), in the hidden states' dtype."""
        return F.linear(hidden, self.head_weight())

    def forward(
        self, input_ids: Tensor, positions: Tensor | None = None, attend: Attend = causal
    ) -> Tensor:
        """Return logits (B, T, V); position t holds the scores of token t + 1.

        Raises:
            ModelError: the shapes do not fit.
        """
        _check_shapes(input_ids, positions)
        return self.logits(self.hidden(input_ids, positions, attend))

    def loss_sum(self, input_ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the summed cross-entropy in nats (float32) and the number of labels scored.

        Args:
            input_ids: (B, T), int64.
            labels: (B, T), int64, already shifted: position t is scored on labels[:, t]; -100 is
                not scored.
        """
        _check_shapes(input_ids, labels)
        hidden = self.hidden(input_ids).flatten(0, 1)  # (B·T, E)
        total = head_loss_sum(hidden, self.head_weight(), labels.flatten())
        return total, (labels != IGNORED).sum()

    def loss(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats over the labels scored (float32 scalar)."""
        total, count = self.loss_sum(input_ids, labels)
        return total / count.clamp(min=1)

    @torch.no_grad()
    def _initialise(self, into_residual: tuple[str, ...]) -> None:
        std = self.config.initializer_range
        # Every layer adds to the residual stream twice: smaller steps keep its variance level.
        residual_std = std / (2 * self.config.num_hidden_layers) ** 0.5
        for name, parameter in self.named_parameters():
            if parameter.is_meta:
                continue
            if parameter.dim() == 2:
                nn.init.normal_(
                    parameter, std=residual_std if name.endswith(into_residual) else std
                )
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)


def empty_embedding(num_rows: int, size: int) -> nn.Embedding:
    """Return an embedding whose weights are not set yet.

    nn.Embedding would draw random ones; on the meta device that alone imports torch's compiler,
    most of a second before a model folder is even opened.
    """
    return nn.Embedding.from_pretrained(torch.empty(num_rows, size), freeze=False)


def _check_shapes(input_ids: Tensor, other: Tensor | None) -> None:
    if input_ids.dim() != 2:
        raise ModelError(f"input_ids has shape {tuple(input_ids.shape)}; pass (B, T)")
    if other is not None and other.shape not in (input_ids.shape, (1, input_ids.shape[1])):
        raise ModelError(
            f"input_ids is {tuple(input_ids.shape)} but its positions or labels are "
            f"{tuple(other.shape)}; pass the same shape"
        )
