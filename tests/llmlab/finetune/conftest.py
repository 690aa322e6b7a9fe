import json
from pathlib import Path

import pytest
import torch

from llmlab.model import LanguageModel, ModelConfig, build_model, save_model
from llmlab.tokenizers import Tokenizer

ARCHITECTURES = ("qwen3", "llama", "qwen2", "gpt2")

WORDS = ["red", "green", "blue", "yellow", "black", "white", "brown", "grey"]


def chats(num: int = 64) -> list[dict]:
    """Half messages, half prompt and completion; the answer repeats the word."""
    rows: list[dict] = []
    for number in range(num):
        word = WORDS[number % len(WORDS)]
        question, answer = f"{number}: say {word}", f"{word} it is"
        if number % 2:
            rows.append({"prompt": question, "completion": answer})
        else:
            rows.append(
                {
                    "messages": [
                        {"role": "user", "content": question},
                        {"role": "assistant", "content": answer},
                    ]
                }
            )
    return rows


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    texts = [json.dumps(row) for row in chats()]
    return Tokenizer.train(texts, vocab_size=400)


def tiny_model(architecture: str, vocab_size: int, seed: int = 0) -> LanguageModel:
    torch.manual_seed(seed)
    gpt2 = architecture == "gpt2"
    config = ModelConfig(
        architecture={
            "qwen3": "Qwen3ForCausalLM",
            "llama": "LlamaForCausalLM",
            "qwen2": "Qwen2ForCausalLM",
            "gpt2": "GPT2LMHeadModel",
        }[architecture],
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=128 if gpt2 else 48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4 if gpt2 else 2,
        head_dim=8,
        max_position_embeddings=128,
        hidden_act="gelu_new" if gpt2 else "silu",
        tie_word_embeddings=architecture != "llama",
        initializer_range=0.2,  # far from zero, so that a wrong layer shows in the logits
    )
    return build_model(config).eval()


@pytest.fixture(scope="session")
def model_folders(
    tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for architecture in ARCHITECTURES:
        model = tiny_model(architecture, tokenizer.vocab_size)
        save_model(model, tokenizer, root / architecture)
    return {architecture: root / architecture for architecture in ARCHITECTURES}


@pytest.fixture
def chat_file(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in chats()) + "\n")
    return path
