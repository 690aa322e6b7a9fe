"""Recurrent language models: RNN, LSTM and GRU, the baselines a transformer is compared with.

Embedding, layers of a norm, torch's own recurrent kernel and a skip connection, final norm, head.
The architecture is our own and no other library reads its model folders. The kernels equal the
textbook loops of llmlab/foundations/recurrent.py. Sources: Elman 1990 (RNN), Hochreiter and
Schmidhuber 1997 (LSTM), arXiv:1406.1078 (GRU).
"""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from llmlab.model.attention import Attend
from llmlab.model.config import ModelConfig
from llmlab.model.document_attention import document_lens
from llmlab.model.language_model import LanguageModel, Read, States, empty_embedding
from llmlab.model.layers import kept_or_recomputed
from llmlab.model.norm import RMSNorm

State = Tensor | tuple[Tensor, Tensor]
"""What a layer remembers: (1, B, E), of an LSTM two of them."""


class RecurrentLayer(nn.Module):
    """Normalise, read from left to right, add back."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        E = config.hidden_size
        self.norm = RMSNorm(E, config.rms_norm_eps)
        if config.architecture == "LSTMForCausalLM":
            self.cell: nn.RNNBase = nn.LSTM(E, E, batch_first=True)
        elif config.architecture == "GRUForCausalLM":
            self.cell = nn.GRU(E, E, batch_first=True)
        else:
            self.cell = nn.RNN(E, E, nonlinearity=config.hidden_act, batch_first=True)

    def forward(self, x: Tensor, state: State | None, *, recompute: bool) -> tuple[Tensor, State]:
        """Map (B, T, E) to (B, T, E) and the state after the last token."""
        return kept_or_recomputed(lambda x: self._computed(x, state), x, recompute=recompute)

    def _computed(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        # Torch's GRU has no fused kernel on a CPU: in bfloat16 its small steps are twice as slow.
        is_slow = isinstance(self.cell, nn.GRU) and x.device.type == "cpu"
        with torch.autocast(x.device.type, enabled=False) if is_slow else nullcontext():
            out, state = self.cell(self.norm(x), state)
        return x + out, state


class Recurrent(LanguageModel):
    """RNN, LSTM or GRU, as `config.architecture` says.

    A text has no positions, and nothing but the state passes from one token to the next: `attend`
    is not called. Weights of the cells start as torch starts them, the forget gate of an LSTM open
    (a bias of 1), embedding and head as normal noise with standard deviation `initializer_range`.
    """

    def __init__(
        self, config: ModelConfig, *, z_loss: float = 0.0, recompute: bool = False
    ) -> None:
        super().__init__(config, z_loss=z_loss, recompute=recompute)
        self.embed_tokens = empty_embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(RecurrentLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        )
        self._start()

    def states(self, input_ids: Tensor, positions: Tensor | None, attend: Attend) -> States:
        """Return the states (B, T, E) after the final norm; every row is read from its start."""
        return States(self.read_on(input_ids, [None] * len(self.layers))[0])

    def states_of_documents(self, input_ids: Tensor, document_ids: Tensor) -> States:
        """Return the states of packed rows, each document read from an empty state."""
        lens = document_lens(document_ids)
        tokens = self.embed_tokens(input_ids.flatten())  # (B T, E)
        rows = nn.utils.rnn.pad_sequence(tokens.split(lens), batch_first=True)
        hidden, _ = self._read_on(rows, [None] * len(self.layers))
        is_token = torch.arange(max(lens)) < torch.tensor(lens)[:, None]  # (documents, longest)
        return States(hidden[is_token.to(hidden.device)].view(*input_ids.shape, -1))

    def head_weight(self) -> Tensor:
        """Return the matrix (V, E) that turns hidden states into logits."""
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def reader(self, *, batch_size: int, max_len: int) -> Read:
        """Return a function that reads on in texts, carrying the state; of any length."""
        states: list[State | None] = [None] * len(self.layers)

        def read(input_ids: Tensor) -> Tensor:
            hidden, states[:] = self.read_on(input_ids, states)
            return hidden

        return read

    def read_on(
        self, input_ids: Tensor, states: Sequence[State | None]
    ) -> tuple[Tensor, list[State | None]]:
        """Read the next tokens of texts.

        Args:
            input_ids: (B, T), int64.
            states: of each layer, after what was read before; None at the beginning of the texts.

        Returns:
            Hidden states (B, T, E) after the final norm, and the layers' states after the last
            token.
        """
        return self._read_on(self.embed_tokens(input_ids), states)

    def _read_on(
        self, x: Tensor, states: Sequence[State | None]
    ) -> tuple[Tensor, list[State | None]]:
        """Map (B, T, E) to hidden states (B, T, E), and the layers' states to those after it."""
        after: list[State | None] = []
        for layer, state in zip(self.layers, states, strict=True):
            x, new_state = layer(x, state, recompute=self.recompute)
            after.append(new_state)
        return self.norm(x), after

    @torch.no_grad()
    def _start(self) -> None:
        for weight in {self.embed_tokens.weight, self.head_weight()}:
            if not weight.is_meta:
                nn.init.normal_(weight, std=self.config.initializer_range)
        if self.config.architecture != "LSTMForCausalLM":
            return
        for name, bias in self.named_parameters():
            if name.endswith("bias_ih_l0") and not bias.is_meta:
                bias[self.config.hidden_size : 2 * self.config.hidden_size] = 1.0
