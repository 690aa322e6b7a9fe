"""The shape a run trains, by preset, depth, architecture and window; and such runs end to end."""

import dataclasses

import pytest

from llmlab.errors import ConfigError, ModelError
from llmlab.model import ModelConfig, generate, load_model
from llmlab.model.window_config import FULL, SLIDING
from llmlab.pretrain import PretrainConfig, pretrain
from llmlab.pretrain.shape import model_config
from llmlab.tokenizers import Tokenizer


@pytest.fixture
def tokenizer(shards) -> Tokenizer:
    return Tokenizer.load(shards / "tokenizer")


def shape_of(config: PretrainConfig, tokenizer: Tokenizer, **changes) -> ModelConfig:
    changed = dataclasses.replace(config, model_config=None, preset="char", **changes)
    return model_config(changed, tokenizer)


def test_depth_takes_the_place_of_a_preset(config, tokenizer):
    shape = shape_of(config, tokenizer, depth=3, arch="llama")
    assert (shape.num_hidden_layers, shape.hidden_size) == (3, 192)
    assert shape.architecture == "LlamaForCausalLM"
    assert shape.max_position_embeddings == config.context_len
    with pytest.raises(ModelError, match="depth=0 is not between 1 and 64"):
        shape_of(config, tokenizer, depth=0)
    with pytest.raises(ConfigError, match="depth=3 has no effect beside model_config="):
        dataclasses.replace(config, depth=3)


def test_windows(config, tokenizer):
    shape = shape_of(config, tokenizer, depth=6, sliding_window=8)
    assert shape.layer_types == (SLIDING, SLIDING, SLIDING, FULL, SLIDING, FULL)
    mistral = shape_of(config, tokenizer, arch="mistral", sliding_window=8)
    assert mistral.windows == (8,) * 4
    with pytest.raises(ModelError, match="LlamaForCausalLM has no sliding window"):
        shape_of(config, tokenizer, arch="llama", sliding_window=8)


@pytest.mark.parametrize(
    "changes",
    [
        {"arch": "lstm", "document_mask": True},
        {"arch": "qwen3_moe", "document_mask": True, "activation_checkpointing": True},
        {"arch": "mistral", "sliding_window": 5, "z_loss": 1e-4},
    ],
)
def test_such_a_run(config, changes):
    changed = dataclasses.replace(config, model_config=None, depth=1, max_steps=3, **changes)
    result = pretrain(changed)
    assert result.model is not None
    model, tokenizer = load_model(result.model)
    assert model.config.num_hidden_layers == 1
    text = "".join(generate(model, tokenizer, "def", max_tokens=4, temperature=1.0))
    assert isinstance(text, str)
    assert result.val_loss is not None
    assert result.val_loss < 7
