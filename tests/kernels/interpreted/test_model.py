"""A model with and without kernels: the same losses in training, the same tokens."""

import pytest
import torch

from llmlab.kernels import op
from llmlab.model.generation import generate_ids
from tests.tiny import tiny_model

SLOW = pytest.mark.slow


def losses(architecture, **changes):
    """Train twenty steps on one batch."""
    model = tiny_model(architecture, num_hidden_layers=1, **changes).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    torch.manual_seed(1)
    input_ids = torch.randint(0, 384, (1, 13))
    found = []
    for _ in range(20):
        loss = model.loss(input_ids[:, :-1], input_ids[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("qwen3", {}),
        pytest.param("qwen3", {"sliding_window": 5}, marks=SLOW),
        pytest.param("llama", {}, marks=SLOW),
        pytest.param("qwen3_moe", {}, marks=SLOW),
    ],
)
def test_twenty_steps(architecture, changes, monkeypatch):
    found = losses(architecture, **changes)
    monkeypatch.setattr(op, "ENABLED", False)
    assert found == pytest.approx(losses(architecture, **changes), abs=1e-4)
    assert found[-1] < 0.8 * found[0]


@pytest.mark.parametrize("architecture", ["qwen3", pytest.param("llama", marks=SLOW)])
def test_two_hundred_greedy_tokens(architecture, monkeypatch):
    model = tiny_model(architecture, num_hidden_layers=1, max_position_embeddings=256)
    found = list(generate_ids(model, [5, 9, 200], max_tokens=200))
    monkeypatch.setattr(op, "ENABLED", False)
    assert found == list(generate_ids(model, [5, 9, 200], max_tokens=200))
    assert len(found) == 200
