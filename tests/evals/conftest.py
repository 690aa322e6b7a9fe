"""A tiny random model folder that every test of the evals can score."""

from pathlib import Path

import pytest
import torch

from llmlab.model import ModelConfig, build_model, save_model
from llmlab.tokenizers import Tokenizer

CONTEXT_LEN = 96
TEXT = """def greet(name):
    return f"hello {name}, the quick brown fox jumps over the lazy dog"
Question: what is the capital of France? Answer: Paris. Grüße aus München 🙂 — naïve café.
"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 of few positions, so that longer texts need windows."""
    tokenizer = Tokenizer.train([TEXT * 20], vocab_size=400)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=CONTEXT_LEN,
        initializer_range=0.3,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("evals") / "tiny"
    save_model(build_model(config).eval(), tokenizer, path)
    return path


PAIRS = [
    ("The capital of France is", " Paris"),
    ("The capital of France is ", "Paris"),
    ("", "Paris is a city"),
    ("Question: what?\nAnswer:", " the quick brown fox"),
    ("Grüße aus", " München 🙂"),
    ("def greet(name):\n    return", ' f"hello"'),
    ("x" * 300, " lazy dog"),
    ("word " * 60, "\n\nhello"),
    ("a", "b"),
]
TEXTS = [
    "short",
    TEXT,
    TEXT * 5,
    "🙂" * 40,
    "a" * 200 + "\n" * 50,
    "<|endoftext|>hello",
    " ",
]
