"""Recomputed activations: the same numbers, less memory, compiled layers too."""

import pytest
import torch
from torch import Tensor

from llmlab.model import LanguageModel, build_model
from llmlab.model.config_json import ARCHITECTURES
from llmlab.training.compilation import with_compiled_layers
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


def kept_bytes(model: LanguageModel) -> int:
    """Bytes kept between forward and backward pass, parameters left out."""
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = model.loss(*batch())
    del loss
    return sum(kept.values())


def test_less_is_kept():
    config = tiny_config(num_hidden_layers=6)
    plain, saving = kept_bytes(build_model(config)), kept_bytes(build_model(config, recompute=True))
    assert saving < 0.2 * plain


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor.*:UserWarning")  # while tracing
@pytest.mark.parametrize("architecture", ["qwen3_moe", "gpt2"])
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
