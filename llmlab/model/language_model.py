"""What every language model here can do: token ids to hidden states, logits, loss, and on.

Not here: the layers (transformer.py, gpt2.py, recurrent.py), sampling, reading and writing files.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.errors import ModelError
from llmlab.kernels.linear_cross_entropy import IGNORED, linear_cross_entropy
from llmlab.model.attention import Attend, attention_of
from llmlab.model.cache import KVCache
from llmlab.model.config import ModelConfig
from llmlab.model.documents import restarting_positions, within_documents

Read = Callable[[Tensor], Tensor]
"""Takes the next token ids of a text, (B, T), and returns their states (B, T, E)."""


class States(NamedTuple):
    """What a model computes before its head."""

    hidden: Tensor
    """(B, T, E), after the final norm."""
    balancing_loss: Tensor | None = None
    """How unequally the experts are busy, if there are any: a float32 scalar."""


class LanguageModel(nn.Module, ABC):
    """A decoder-only language model.

    A subclass names its parameters as Hugging Face does, so that weights load with
    `load_state_dict(strict=True)`. An untrained model's loss is ln V.

    Args:
        config: the model's shape.
        z_loss: weight in training of the squared logarithm of the softmax's normaliser.
        recompute: keep only each layer's input for the backward pass (activation checkpointing).
    """

    head_loss_sum = staticmethod(linear_cross_entropy)
    """What scores the states; training puts its compiled twin here for a while."""

    def __init__(
        self, config: ModelConfig, *, z_loss: float = 0.0, recompute: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.z_loss = z_loss
        self.recompute = recompute

    @abstractmethod
    def states(self, input_ids: Tensor, positions: Tensor | None, attend: Attend) -> States:
        """Return the states after the final norm.

        Args:
            input_ids: (B, T), int64.
            positions: (B, T) or (1, T) token positions; 0 ... T-1 when None.
            attend: the only thing that mixes positions.
        """

    @abstractmethod
    def head_weight(self) -> Tensor:
        """Return the matrix (V, E) that turns hidden states into logits."""

    def hidden(
        self,
        input_ids: Tensor,
        positions: Tensor | None = None,
        attend: Attend | None = None,
    ) -> Tensor:
        """Return the states (B, T, E) after the final norm.

        Args:
            input_ids: (B, T), int64.
            positions: (B, T) or (1, T) token positions; 0 ... T-1 when None.
            attend: the only thing that mixes positions; when None, whole rows, causally.
        """
        return self.states(input_ids, positions, attend or attention_of(self.config.windows)).hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits (..., V) of hidden states (..., E), in the hidden states' dtype."""
        return F.linear(hidden, self.head_weight())

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor | None = None,
        attend: Attend | None = None,
    ) -> Tensor:
        """Return logits (B, T, V); position t holds the scores of token t + 1.

        Raises:
            ModelError: the shapes do not fit.
        """
        _check_shapes(input_ids, positions)
        return self.logits(self.hidden(input_ids, positions, attend))

    def states_of_documents(self, input_ids: Tensor, document_ids: Tensor) -> States:
        """Return the states of packed rows, each document as if it were alone.

        Args:
            input_ids: (B, T), int64.
            document_ids: (B, T), whole numbers; neighbours of one document are equal.
        """
        attend = within_documents(document_ids, self.config.windows)
        return self.states(input_ids, restarting_positions(document_ids), attend)

    def loss_sum(
        self, input_ids: Tensor, labels: Tensor, document_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the summed cross-entropy in nats (float32) and the number of labels scored.

        The gradient is also that of the z-loss, and of the experts' balancing loss for each label
        scored; the value is not, so that it compares between models.

        Args:
            input_ids: (B, T), int64.
            labels: (B, T), int64, already shifted: position t is scored on labels[:, t]; -100 is
                not scored.
            document_ids: (B, T), whole numbers that keep packed documents apart; whole rows are
                one document each when None.
        """
        for other in (labels, document_ids):
            _check_shapes(input_ids, other)
        if document_ids is None:
            states = self.states(input_ids, None, attention_of(self.config.windows))
        else:
            states = self.states_of_documents(input_ids, document_ids)
        hidden = states.hidden.flatten(0, 1)  # (B·T, E)
        total = self.head_loss_sum(hidden, self.head_weight(), labels.flatten(), z_loss=self.z_loss)
        count = (labels != IGNORED).sum()
        if states.balancing_loss is None or self.config.experts is None:
            return total, count
        balancing = self.config.experts.router_aux_loss_coef * count * states.balancing_loss
        return total + (balancing - balancing.detach()), count

    def loss(self, input_ids: Tensor, labels: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """Return the mean cross-entropy in nats over the labels scored (float32 scalar).

        Arguments and gradient are those of `loss_sum`.
        """
        total, count = self.loss_sum(input_ids, labels, document_ids)
        return total / count.clamp(min=1)

    def reader(self, *, batch_size: int, max_len: int) -> Read:
        """Return a function that reads on in texts, remembering what it has read.

        Args:
            batch_size: B, texts of equal length read side by side.
            max_len: most tokens of one text.
        """
        weight = self.head_weight()
        cache = KVCache(
            self.config,
            batch_size=batch_size,
            max_len=max_len,
            dtype=weight.dtype,
            device=weight.device,
        )

        def read(input_ids: Tensor) -> Tensor:
            end = cache.length + input_ids.shape[1]
            positions = torch.arange(cache.length, end, device=input_ids.device)[None]  # (1, T)
            hidden = self.hidden(input_ids, positions, cache.attend)
            cache.advance(input_ids.shape[1])
            return hidden

        return read

    @torch.no_grad()
    def _initialise(self, into_residual: tuple[str, ...]) -> None:
        std = self.config.initializer_range
        # Every layer adds to the residual stream twice: smaller steps keep its variance level.
        residual_std = std / (2 * self.config.num_hidden_layers) ** 0.5
        for name, parameter in self.named_parameters():
            if parameter.is_meta:
                continue
            if parameter.dim() >= 2:
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
