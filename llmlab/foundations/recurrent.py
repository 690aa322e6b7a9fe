"""Recurrent networks, one token at a time: the plain RNN, the GRU and the LSTM.

Each reads a sequence from left to right and keeps a state of fixed size. The gates are where they
differ: an RNN overwrites its state, a GRU mixes old and new, an LSTM forgets, adds and shows parts
of a cell that it carries along. Weights are stacked as torch stacks them, so that the tests can
compare these loops with its kernels, which the models of llmlab/model/recurrent.py use.

Shapes: T tokens, B rows, I input size, E state size. Sources: Elman 1990, "Finding Structure in
Time"; Cho et al. 2014, arXiv:1406.1078 (GRU, in the form of arXiv:1412.3555); Hochreiter and
Schmidhuber 1997 with the forget gate of Gers et al. 2000 (LSTM).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Weights:
    """What one layer has learned; `gates` is 1 for an RNN, 3 for a GRU, 4 for an LSTM."""

    from_input: Tensor
    """(gates E, I)."""
    from_state: Tensor
    """(gates E, E)."""
    input_bias: Tensor
    """(gates E,)."""
    state_bias: Tensor
    """(gates E,)."""

    def split(self, x: Tensor, state: Tensor, gates: int) -> tuple[list[Tensor], list[Tensor]]:
        """Return what the input and what the state say to each gate, (B, E) each."""
        of_input = x @ self.from_input.t() + self.input_bias
        of_state = state @ self.from_state.t() + self.state_bias
        return list(of_input.chunk(gates, dim=-1)), list(of_state.chunk(gates, dim=-1))


def rnn(xs: Tensor, state: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """Read xs (T, B, I) from a state (B, E).

    Returns:
        The state after each token (T, B, E), and the last one.
    """
    outputs = []
    for x in xs:
        (of_input,), (of_state,) = weights.split(x, state, 1)
        state = torch.tanh(of_input + of_state)
        outputs.append(state)
    return torch.stack(outputs), state


def gru(xs: Tensor, state: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """Read xs (T, B, I) from a state (B, E).

    Returns:
        The state after each token (T, B, E), and the last one.
    """
    outputs = []
    for x in xs:
        of_input, of_state = weights.split(x, state, 3)
        reset = torch.sigmoid(of_input[0] + of_state[0])
        keep = torch.sigmoid(of_input[1] + of_state[1])
        new = torch.tanh(of_input[2] + reset * of_state[2])
        state = keep * state + (1 - keep) * new
        outputs.append(state)
    return torch.stack(outputs), state


def lstm(
    xs: Tensor, state: tuple[Tensor, Tensor], weights: Weights
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Read xs (T, B, I) from what is shown and the cell behind it, (B, E) each.

    Returns:
        What is shown after each token (T, B, E), and the last of both.
    """
    shown, cell = state
    outputs = []
    for x in xs:
        of_input, of_state = weights.split(x, shown, 4)
        add, forget, new, show = (a + b for a, b in zip(of_input, of_state, strict=True))
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(add) * torch.tanh(new)
        shown = torch.sigmoid(show) * torch.tanh(cell)
        outputs.append(shown)
    return torch.stack(outputs), (shown, cell)
