"""Small real objects for every test: a config, a model, a tokenizer, a model folder."""

from pathlib import Path
from typing import Any

import torch

from llmlab.model import LanguageModel, ModelConfig, build_model, save_model
from llmlab.model.config_json import ARCHITECTURES, ATTENTION_SIZES, RECURRENT
from llmlab.model.experts_config import Experts
from llmlab.tokenizers import Tokenizer

TEXTS: tuple[str, ...] = (
    "The cat sat on the mat, and the dog sat on the log.",
    "def add(first, second):\n    return first + second\n",
    "Naïve café: 12,345 résumés – 汉字 and emoji 🙂.",
)

CHAT: tuple[dict[str, str], ...] = (
    {"role": "user", "content": "Where is the cat?"},
    {"role": "assistant", "content": "The cat sat on the mat."},
)


def tiny_config(
    architecture: str = "qwen3", *, vocab_size: int = 384, **changes: Any
) -> ModelConfig:
    """A config of 3 layers that a forward pass takes milliseconds for.

    Args:
        architecture: a key of ARCHITECTURES.
        vocab_size: V; the default leaves room for the tiny tokenizer.
        changes: ModelConfig fields to set otherwise.
    """
    is_gpt2 = architecture == "gpt2"
    fields: dict[str, Any] = {
        "architecture": ARCHITECTURES[architecture],
        "vocab_size": vocab_size,
        "hidden_size": 48,
        "intermediate_size": 192 if is_gpt2 else 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4 if is_gpt2 else 2,
        "head_dim": 12 if is_gpt2 else 16,
        "max_position_embeddings": 128,
        "hidden_act": "gelu_new" if is_gpt2 else "silu",
        "tie_word_embeddings": True,
    }
    if architecture == "qwen3_moe":
        fields["experts"] = Experts(num_experts=5, num_experts_per_tok=2, moe_intermediate_size=24)
    if architecture in RECURRENT:
        fields |= {"hidden_act": "tanh", **dict.fromkeys(ATTENTION_SIZES, 0)}
    return ModelConfig(**(fields | changes))


def tiny_model(architecture: str = "qwen3", seed: int = 0, **changes: Any) -> LanguageModel:
    """A model whose outputs differ clearly between tokens: weights of standard deviation 0.2."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"initializer_range": 0.2, **changes}
    return build_model(tiny_config(architecture, **settings)).eval()


def tiny_tokenizer(vocab_size: int = 384) -> Tokenizer:
    """A byte-level BPE tokenizer trained on three sentences."""
    return Tokenizer.train(TEXTS, vocab_size=vocab_size)


def tiny_model_folder(
    tmp_path: Path, architecture: str = "qwen3", seed: int = 0, **changes: Any
) -> Path:
    """A whole model folder, tokenizer included."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(architecture, seed, vocab_size=max(384, tokenizer.vocab_size), **changes)
    folder = tmp_path / f"tiny-{architecture}"
    save_model(model, tokenizer, folder)
    return folder
