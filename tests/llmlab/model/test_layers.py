"""Recomputed activations: the same numbers, less memory, compiled layers too."""

import pytest
import torch
from torch import Tensor

from llmlab.model import LanguageModel, build_model
from llmlab.model.config_json import ARCHITECTURES
from llmlab.training.compilation import with_compiled_layers
from tests.llmlab.model.kept import kept_bytes
from tests.tiny import tiny_config, tiny_model


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randint(0, 384, (2, 32)), torch.randint(0, 384, (2, 32))


def gradients(model: LanguageModel) -> dict[str, Tensor]:
    model.zero_grad()
    model.loss(*batch()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_gradients_are_bitwise_the_same(architecture: str):
    model = tiny_model(architecture)
    expected = gradients(model)
    model.recompute = True
    got = gradients(model)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_less_is_kept():
    config = tiny_config(num_hidden_layers=6)
    models = build_model(config), build_model(config, recompute=True)
    plain, saving = (kept_bytes(model, *batch()) for model in models)
    assert saving < 0.2 * plain


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor.*:UserWarning")  # while tracing
@pytest.mark.parametrize(
    "architecture", [pytest.param("qwen3_moe", marks=pytest.mark.slow), "gpt2"]
)
def test_with_compiled_layers(architecture: str):
    model = tiny_model(architecture, num_hidden_layers=2).train()
    expected = gradients(model)
    model.recompute = True
    model.zero_grad()
    with pytest.MonkeyPatch.context() as patch:
        compile_ = torch.compile
        patch.setattr(torch, "compile", lambda f, **k: compile_(f, **k, backend="aot_eager"))
        loss_sum = with_compiled_layers(model)
    total, count = loss_sum(*batch())
    (total / count).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-4)
