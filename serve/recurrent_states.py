"""What recurrent models remember of each sequence: a state of fixed size, in place of pages.

To the scheduler it is a page that holds any number of tokens, so nothing else changes. A state
cannot be taken back, nor begun in the middle of a text: no drafts, no prefix cache.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from llmlab.model.recurrent import Recurrent, State
from llmlab.serve.sequence import Slice


class RecurrentStates:
    """The states of all layers, `(num_states, E)` each, of an LSTM two.

    Args:
        model: on its device.
        num_states: sequences that can run side by side.
    """

    def __init__(self, model: Recurrent, num_states: int) -> None:
        weight = model.head_weight()
        self._model = model
        self._num_parts = 2 if model.config.architecture == "LSTMForCausalLM" else 1
        shape = (len(model.layers), self._num_parts, num_states, model.config.hidden_size)
        self._states = torch.zeros(shape, dtype=weight.dtype, device=weight.device)

    def read(self, slices: Sequence[Slice]) -> Tensor:
        """Read the tokens of slices on; return their hidden states (N, E), slice after slice.

        Slices of one length are read together. What a sequence computes may depend on its company
        in the last bit.
        """
        lengths: dict[int, list[int]] = {}
        for at, part in enumerate(slices):
            lengths.setdefault(part.num_tokens, []).append(at)
        found: list[Tensor] = [self._states.new_empty(0)] * len(slices)
        for which in lengths.values():
            for at, hidden in zip(which, self._read([slices[at] for at in which]), strict=True):
                found[at] = hidden
        return torch.cat(found)

    def _read(self, parts: list[Slice]) -> Tensor:
        """Read slices of one length: (B, T, E)."""
        device = self._states.device
        ids = torch.tensor([p.seq.token_ids[p.start : p.end] for p in parts], device=device)
        places = torch.tensor([part.seq.pages[0] for part in parts], device=device)
        is_new = torch.tensor([part.start == 0 for part in parts], device=device)
        known = self._states[:, :, places].masked_fill_(is_new[:, None], 0)  # (L, parts, B, E)
        hidden, after = self._model.read_on(ids, [self._of_layer(own) for own in known])
        for layer, state in enumerate(after):
            assert state is not None, "a layer that has read something has a state"
            values = state if isinstance(state, tuple) else (state,)
            for number, value in enumerate(values):  # (1, B, E)
                self._states[layer, number, places] = value[0]
        return hidden

    def _of_layer(self, known: Tensor) -> State:
        """Return the state of a layer, (parts, B, E), as torch's cells take it."""
        parts = [part[None].contiguous() for part in known]  # (1, B, E) each
        return (parts[0], parts[1]) if self._num_parts == 2 else parts[0]
