"""The textbook loops against torch's kernels: outputs, states and gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llmlab.foundations.recurrent import Weights, gru, lstm, rnn

# float64: the same operations, in another order.
ATOL = 1e-12


def weights_of(cell: nn.RNNBase) -> Weights:
    return Weights(*(cell.get_parameter(f"{name}_l0") for name in
                     ("weight_ih", "weight_hh", "bias_ih", "bias_hh")))  # fmt: skip


@pytest.mark.parametrize(("kernel", "loop"), [(nn.RNN, rnn), (nn.GRU, gru), (nn.LSTM, lstm)])
def test_equals_the_kernel(
    kernel: type[nn.RNN] | type[nn.GRU] | type[nn.LSTM], loop: Callable[..., Any]
):
    torch.manual_seed(0)
    cell = kernel(5, 7).double()
    xs = torch.randn(11, 3, 5, dtype=torch.float64, requires_grad=True)
    first = torch.randn(2, 3, 7, dtype=torch.float64)
    is_lstm = kernel is nn.LSTM
    state = (first[:1], first[1:]) if is_lstm else first[:1]
    expected, last = cell(xs, state)
    got, got_last = loop(xs, (first[0], first[1]) if is_lstm else first[0], weights_of(cell))
    torch.testing.assert_close(got, expected, atol=ATOL, rtol=0)
    torch.testing.assert_close(flat(got_last), flat(last), atol=ATOL, rtol=0)
    inputs = (xs, *cell.parameters())
    gradients = torch.autograd.grad(got.square().sum(), inputs)
    for mine, theirs in zip(
        gradients, torch.autograd.grad(expected.square().sum(), inputs), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=ATOL, rtol=1e-12)


def flat(state: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    return (
        torch.cat([part.flatten() for part in state])
        if isinstance(state, tuple)
        else state.flatten()
    )
