"""Experts: the grouped products, the load, and names on disk. Parity is in test_parity.py."""

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from llmlab.errors import ModelError
from llmlab.model import build_model
from llmlab.model.expert_names import joined_experts, parted_experts
from llmlab.model.experts import SparseMLP, balancing_loss, grouped_linear
from llmlab.model.experts_config import Experts
from tests.tiny import tiny_config, tiny_model


@given(counts=st.lists(st.integers(0, 5), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_grouped_products_and_gradients(counts: list[int]):
    torch.manual_seed(0)
    x = torch.randn(sum(counts), 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(len(counts), 4, 3, dtype=torch.float64, requires_grad=True)
    got = grouped_linear(x, weight, torch.tensor(counts))
    group = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    expected = torch.einsum("mi,moi->mo", x, weight[group])
    torch.testing.assert_close(got, expected)
    for mine, theirs in zip(
        torch.autograd.grad(got.square().sum(), (x, weight)),
        torch.autograd.grad(expected.square().sum(), (x, weight)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_the_operation_is_well_declared():
    x, weight = torch.randn(6, 3, requires_grad=True), torch.randn(2, 4, 3, requires_grad=True)
    torch.library.opcheck(
        torch.ops.llmlab.grouped_linear.default, (x, weight, torch.tensor([2, 4]))
    )


def test_autocast_multiplies_in_bfloat16():
    model = tiny_model("qwen3_moe")
    layer = model.get_submodule("model.layers.0.mlp")
    assert isinstance(layer, SparseMLP)
    x = torch.randn(1, 50, 48)
    exact, _ = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        out, load = layer(x)
    assert (out.dtype, load.dtype) == (torch.bfloat16, torch.float32)
    # A token whose second and third expert are nearly equal may be routed otherwise.
    assert ((out - exact).abs().mean(-1) < 0.1 * exact.abs().mean()).float().mean() > 0.9


def test_load_counts_every_choice():
    model = tiny_model("qwen3_moe")
    layer = model.get_submodule("model.layers.0.mlp")
    _, load = layer(torch.randn(2, 30, 48))
    chosen, probabilities = load
    assert chosen.sum() == 2 * 60
    assert probabilities.sum().item() == pytest.approx(60, rel=1e-5)


def test_balancing_loss_is_least_where_all_are_equally_busy():
    equal = torch.tensor([[4.0, 4.0], [2.0, 2.0]])  # 4 tokens, 2 experts each, K = 2
    assert balancing_loss(equal, 4).item() == pytest.approx(2.0)
    one_sided = torch.tensor([[4.0, 0.0], [3.9, 0.1]])
    assert balancing_loss(one_sided, 4).item() == pytest.approx(2 * 3.9 / 4)


def test_names_on_disk_and_back():
    state = tiny_model("qwen3_moe").state_dict()
    parted = parted_experts(state)
    assert parted["model.layers.2.mlp.experts.4.up_proj.weight"].shape == (24, 48)
    assert not any(name.endswith("gate_up_proj") for name in parted)
    again = joined_experts(dict(parted), state)
    assert list(again) == list(state)
    assert all(torch.equal(again[name], state[name]) for name in state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": 0}, "num_experts=0 is not a positive whole number"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok=9 is more than the num_experts=4"),
    ],
)
def test_experts_that_make_no_layer(change: dict[str, Any], message: str):
    sizes: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
    with pytest.raises(ModelError, match=message):
        Experts(**sizes | change)


def test_experts_and_architecture_go_together():
    with pytest.raises(ModelError, match="experts=None does not fit Qwen3MoeForCausalLM"):
        tiny_config("qwen3_moe", experts=None)
    with pytest.raises(ModelError, match="does not fit LlamaForCausalLM"):
        tiny_config("llama", experts=tiny_config("qwen3_moe").experts)


def test_parameters_that_a_token_uses():
    config = tiny_config("qwen3_moe")
    per_expert = 3 * 48 * 24
    assert config.num_parameters - config.num_active_parameters == 3 * 3 * per_expert
    model = build_model(config)
    assert config.num_parameters == sum(p.numel() for p in model.parameters())
