from pathlib import Path

import pytest
import torch
from torch import Tensor

from llmlab.errors import ConfigError, ModelError
from llmlab.finetune import LoraConfig, add_lora, merge_lora
from llmlab.finetune.lora import lora_layers
from llmlab.model import LanguageModel
from tests.llmlab.finetune.conftest import ARCHITECTURES, tiny_model

IDS = torch.arange(24).view(2, 12) * 7 % 300

FLOAT32 = {"atol": 1e-5, "rtol": 1e-5}
"""Adding the update to the weight or to the output rounds at other places."""


def logits(model: LanguageModel) -> Tensor:
    with torch.no_grad():
        return model(IDS)


def stir(model: LanguageModel, seed: int = 1) -> None:
    """Give the matrices B numbers, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            weight = layer.lora_B.weight
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_fresh_adapter_changes_nothing_and_a_merged_one_computes_the_same(architecture: str):
    model = tiny_model(architecture, 300)
    before, names = logits(model), list(model.state_dict())
    adapted = add_lora(model, LoraConfig(rank=4))
    assert len(adapted) == (8 if architecture == "gpt2" else 14)
    torch.testing.assert_close(logits(model), before, atol=0, rtol=0)
    stir(model)
    unmerged = logits(model)
    assert (unmerged - before).abs().max() > 0.1
    merge_lora(model)
    torch.testing.assert_close(logits(model), unmerged, **FLOAT32)
    assert list(model.state_dict()) == names
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_only_the_adapter_is_trained():
    model = tiny_model("qwen3", 300)
    add_lora(model, LoraConfig(rank=4))
    stir(model)
    model.loss(IDS, IDS).backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {name for name in model.state_dict() if ".lora_" in name}


def test_targets_pick_layers_by_the_end_of_their_name():
    model = tiny_model("qwen3", 300)
    names = add_lora(model, LoraConfig(target_modules=("q_proj", "mlp.down_proj")))
    assert names == [
        f"model.layers.{layer}.{name}"
        for layer in (0, 1)
        for name in ("self_attn.q_proj", "mlp.down_proj")
    ]


def test_dropout_acts_in_training_only():
    model = tiny_model("llama", 300)
    add_lora(model, LoraConfig(dropout=0.5))
    stir(model)
    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(logits(model), logits(model))


def test_the_seed_decides_the_start():
    starts = []
    for seed in (0, 0, 1):
        model = tiny_model("qwen3", 300)
        add_lora(model, LoraConfig(rank=4), seed=seed)
        starts.append(next(iter(lora_layers(model).values())).lora_A.weight)
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_half_precision_base_keeps_a_float32_adapter():
    model = tiny_model("qwen3", 300).bfloat16()
    add_lora(model, LoraConfig(rank=4))
    stir(model)
    layer = next(iter(lora_layers(model).values()))
    assert layer.lora_A.weight.dtype == torch.float32
    unmerged = logits(model)
    assert unmerged.dtype == torch.bfloat16
    merge_lora(model)
    # bfloat16 keeps 8 bits; the rounded weights act on logits of a magnitude of about 10
    torch.testing.assert_close(logits(model), unmerged, atol=0.5, rtol=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "rank=0 is below 1"),
        ({"alpha": 0.0}, "alpha=0.0 must be greater than 0"),
        ({"dropout": 1.0}, r"dropout=1.0 must be in \[0, 1\)"),
        ({"target_modules": ()}, "target_modules is empty"),
    ],
)
def test_unusable_settings(changes: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        LoraConfig(**changes)


def test_scaling_of_lora_and_rslora():
    assert LoraConfig(rank=16, alpha=32, rslora=False).scaling == 2
    assert LoraConfig(rank=16, alpha=32, rslora=True).scaling == 8


def test_unusable_targets(tmp_path: Path):
    model = tiny_model("qwen3", 300)
    with pytest.raises(ModelError, match="no layer 'q_prj'; did you mean 'q_proj'"):
        add_lora(model, LoraConfig(target_modules=("q_prj",)))
    add_lora(model, LoraConfig())
    with pytest.raises(ModelError, match="already has an adapter; merge it first"):
        add_lora(model, LoraConfig())
