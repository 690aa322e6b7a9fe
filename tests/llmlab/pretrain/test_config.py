from pathlib import Path

import pytest

from llmlab.errors import ConfigError
from llmlab.pretrain import PretrainConfig

FOLDERS = {"data": ("shards",), "out": Path("run")}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "no budget: max_steps, max_seconds and max_tokens are all unset"),
        (
            {"max_steps": 1, "context_len": 512, "batch_tokens": 1000},
            "batch_tokens=1000 is not a multiple of context_len x accumulation=512; "
            "try 512 or 1024",
        ),
        (
            {"max_steps": 1, "context_len": 256, "accumulation": 4, "batch_tokens": 256},
            "batch_tokens=256 is not a multiple of context_len x accumulation=1024; try 1024",
        ),
        ({"max_steps": 1, "context_len": 0}, "context_len=0 must be at least 1"),
        ({"max_steps": 1, "learning_rate": 0.0}, "learning_rate=0.0 must be greater than 0"),
        ({"max_steps": 1, "resume": True, "overwrite": True}, "choose one"),
        ({"max_steps": 1, "sample_temperature": -1.0}, "sample_temperature=-1.0"),
        (
            {"max_steps": 1, "arch": "gpt2", "model_config": Path("config.json")},
            "arch=gpt2 has no effect beside model_config=config.json",
        ),
    ],
)
def test_unusable_settings_are_refused(fields, message):
    with pytest.raises(ConfigError) as caught:
        PretrainConfig(**FOLDERS, **fields)
    assert message in str(caught.value)


def test_a_step_is_cut_into_micro_batches():
    config = PretrainConfig(**FOLDERS, max_steps=1, batch_tokens=8192, accumulation=4)
    assert config.batch_size * config.context_len * config.accumulation == 8192
    assert config.batch_size == 8
