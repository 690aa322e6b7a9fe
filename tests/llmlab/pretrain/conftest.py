"""A small corpus of real code, packed with a small tokenizer; a small model for it."""

import argparse
import dataclasses
import inspect
import json
import random
import textwrap
from pathlib import Path

import pytest

from llmlab.data import PackConfig, pack
from llmlab.model import ModelConfig
from llmlab.pretrain import PretrainConfig
from llmlab.tokenizers import Tokenizer

CONTEXT = 32


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for module in (argparse, inspect, json, random, textwrap, dataclasses):
        (folder / f"{module.__name__}.py").write_text(inspect.getsource(module), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def shards(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    texts = [path.read_text(encoding="utf-8") for path in sorted(corpus.glob("*.py"))]
    Tokenizer.train(texts, vocab_size=320).save(folder / "tokenizer")
    pack(
        PackConfig(
            sources=(str(corpus),),
            tokenizer=folder / "tokenizer",
            out=folder / "shards",
            val_fraction=0.2,
        )
    )
    return folder / "shards"


@pytest.fixture(scope="session")
def shape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = ModelConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
    )
    path = tmp_path_factory.mktemp("shape") / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    return path


@pytest.fixture
def config(shards: Path, shape: Path, tmp_path: Path) -> PretrainConfig:
    return PretrainConfig(
        data=(str(shards),),
        out=tmp_path / "run",
        model_config=shape,
        max_steps=10,
        context_len=CONTEXT,
        batch_tokens=4 * CONTEXT,
        warmup_steps=2,
        eval_every=5,
        eval_tokens=1000,
        sample_every=5,
        sample_tokens=4,
        checkpoint_every=5,
        compile="off",
        dtype="float32",
    )
