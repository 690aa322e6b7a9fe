from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.model import ModelConfig
from llmlab.pretrain import PretrainConfig
from llmlab.pretrain.sizing import batch_tokens_for, learning_rate_for, recipe, sized

OPEN = PretrainConfig(data=("shards",), out=Path("run"), max_steps=1)


def test_what_is_left_open_follows_the_model():
    shape = ModelConfig.preset("quickstart", vocab_size=8192)
    config = sized(OPEN, shape)
    assert config.batch_tokens == 2048
    assert config.learning_rate == learning_rate_for("muon", 256)
    said = f"muon at a learning rate of {config.learning_rate:g}, cosine; 2048 tokens a step"
    assert recipe(config) == said
    larger = sized(OPEN, ModelConfig.preset("nano", vocab_size=50304))
    assert larger.batch_tokens == 8 * 2048
    assert learning_rate_for("muon", 384) < learning_rate_for("muon", 256)
    assert larger.plan.learning_rate == larger.learning_rate


def test_what_is_set_stays():
    shape = ModelConfig.preset("quickstart", vocab_size=8192)
    given_ = PretrainConfig(
        data=("shards",), out=Path("run"), max_steps=1, learning_rate=0.5, batch_tokens=512
    )
    assert sized(given_, shape) == given_


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "lion"])
def test_wider_models_learn_slower(optimizer):
    rates = [learning_rate_for(optimizer, width) for width in (64, 128, 256, 768, 2048)]
    assert rates == sorted(rates, reverse=True)
    assert len(set(rates)) == 5


@given(
    num_parameters=st.integers(1000, 10**12),
    context_len=st.integers(1, 5000),
    accumulation=st.integers(1, 64),
)
def test_a_step_is_always_whole_micro_batches(num_parameters, context_len, accumulation):
    unit = context_len * accumulation
    tokens = batch_tokens_for(num_parameters, unit=unit)
    assert tokens % unit == 0
    assert tokens > 0
    assert tokens <= max(unit, 2**19 + unit)
    PretrainConfig(
        data=("shards",), out=Path("run"), max_steps=1, context_len=context_len,
        accumulation=accumulation, batch_tokens=tokens,
    )  # fmt: skip
