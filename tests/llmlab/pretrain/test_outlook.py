"""The estimates before a run against what is measured."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch

from llmlab.model import ModelConfig, build_model
from llmlab.pretrain.outlook import layer_floats, memory_bytes, outlook
from tests.llmlab.model.kept import kept_bytes

SMALL = ModelConfig.preset("quickstart", vocab_size=320)
SHAPES = {
    "fewer key/value heads": dataclasses.replace(SMALL, num_key_value_heads=1),
    "wide heads": dataclasses.replace(SMALL, num_attention_heads=8, num_key_value_heads=4),
    **{
        architecture: ModelConfig.preset("quickstart", vocab_size=320, architecture=architecture)
        for architecture in ("qwen3", "qwen3_moe", "llama", "qwen2", "gpt2", "rnn", "gru")
    },
}


def kept_floats(config: ModelConfig, num_tokens: int) -> float:
    """Numbers that autograd keeps for a token, parameters left out."""
    input_ids, labels = torch.randint(0, config.vocab_size, (2, 1, num_tokens))
    return kept_bytes(build_model(config), input_ids, labels) / 4 / num_tokens


@pytest.mark.parametrize("name", SHAPES)
def test_what_a_layer_keeps(name: str):
    one, two = (
        kept_floats(dataclasses.replace(SHAPES[name], num_hidden_layers=layers), num_tokens=32)
        for layers in (1, 2)
    )
    assert layer_floats(SHAPES[name]) == pytest.approx(two - one, rel=0.02)


MEASURE = """
import json, sys, torch
from llmlab.model import ModelConfig, build_model
from llmlab.pretrain.facts import peak_memory_bytes, restart_peak_memory
from llmlab.training.optimizer import build_optimizer
from llmlab.training.plan import TrainingPlan
recompute, optimizer, rows = json.loads(sys.argv[1])
plan = TrainingPlan(max_steps=1, optimizer=optimizer)

def train(layers, ids):
    config = ModelConfig.preset("quickstart", vocab_size=8192)
    fields = vars(config) | {"num_hidden_layers": layers}
    model = build_model(ModelConfig(**fields), recompute=recompute)
    optimizer = build_optimizer(model, plan)
    for _ in range(2):
        model.loss(ids, ids).backward()
        optimizer.step()
        optimizer.zero_grad()

torch.manual_seed(0)
train(1, torch.randint(0, 8192, (1, 8)))
restart_peak_memory(torch.device("cpu"))
before = peak_memory_bytes(torch.device("cpu"))
train(8, torch.randint(0, 8192, (rows, 256)))
print(peak_memory_bytes(torch.device("cpu")) - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    ("recompute", "optimizer", "rows"),
    [(False, "adamw", 8), (False, "adamw", 16), (True, "adamw", 16), (False, "muon", 16)],
)
def test_memory_within_a_fifth_of_the_peak(recompute: bool, optimizer: str, rows: int):
    settings = json.dumps([recompute, optimizer, rows])
    out = subprocess.run(
        [sys.executable, "-c", MEASURE, settings], check=True, capture_output=True, text=True
    )
    estimate = memory_bytes(
        ModelConfig.preset("quickstart", vocab_size=8192),
        tokens=rows * 256,
        recompute=recompute,
        optimizer=optimizer,
    )
    assert estimate == pytest.approx(int(out.stdout), rel=0.2)


def test_an_optimizer_without_a_batch():
    """With next to no tokens, what is left is weights, gradients and the optimizer's state."""
    config = ModelConfig.preset("quickstart", vocab_size=8192)
    for optimizer, num_floats in (("adamw", 4), ("lion", 3)):
        estimate = memory_bytes(config, tokens=1, optimizer=optimizer)
        assert estimate == pytest.approx(4 * num_floats * config.num_parameters, rel=0.1)
    averaged = memory_bytes(config, tokens=1, averaged=True)
    assert averaged - memory_bytes(config, tokens=1) == 4 * config.num_parameters


def test_what_is_said():
    config = ModelConfig.preset("moe", vocab_size=8192)
    size, memory, loss = outlook(config, context_len=256, tokens=2048, memory=2 * 10**9)
    assert "22.57M parameters, 8.41M of them active for a token" in size
    assert "4096 bytes of KV cache per token" in size
    assert memory.startswith("memory: up to about 2.00 GB")
    assert loss == "expected loss at step 0: ln 8192 = 9.011"
    lstm = ModelConfig.preset("char", vocab_size=65, architecture="lstm")
    assert "transformers has no such class" in outlook(lstm, context_len=8, tokens=8, memory=1)[0]
