"""The metadata of a GGUF file that say what llama.cpp computes: a model's config in its words.

Not here: the tokenizer's keys (llmlab/tokenizers/files/gguf_vocab.py), names of tensors
(gguf_names.py), reading (gguf_architectures.py). What llama.cpp would compute otherwise is refused.

The keys `llmlab.rope.*` keep the numbers of Llama 3's rotary scaling, of which the format has only
the divisors they lead to; llama.cpp passes over them.
Source: the GGUF specification (github.com/ggml-org/ggml, docs/gguf.md) and what llama.cpp reads.
"""

import dataclasses

import torch
from torch import Tensor

from llmlab.errors import ModelError
from llmlab.model.config import ModelConfig
from llmlab.model.gguf_names import CLASSES
from llmlab.model.rope import inverse_frequencies
from llmlab.tokenizers.files.gguf_writer import Value


def gguf_architecture(config: ModelConfig) -> str:
    """Return GGUF's name of the architecture.

    Raises:
        ModelError: llama.cpp does not compute this model, or not so.
    """
    for name, class_name in CLASSES.items():
        if class_name == config.architecture:
            _check(config, name)
            return name
    raise ModelError(
        f"architecture={config.architecture!r} has no form in GGUF here; those written are "
        f"{', '.join(CLASSES.values())}"
    )


def config_metadata(config: ModelConfig) -> dict[str, Value]:
    """Return the keys that say what llama.cpp computes.

    Raises:
        ModelError: llama.cpp does not compute this model, or not so.
    """
    name = gguf_architecture(config)
    keys: dict[str, Value] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
    }
    if config.is_gpt2:
        keys["attention.layer_norm_epsilon"] = config.rms_norm_eps
    else:
        keys |= {
            "attention.head_count_kv": config.num_key_value_heads,
            "attention.key_length": config.head_dim,
            "attention.value_length": config.head_dim,
            "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
            "rope.dimension_count": config.head_dim,
            "rope.freq_base": float(config.rope_theta),
        }
    metadata = {f"{name}.{key}": value for key, value in keys.items()}
    return metadata | _scaling_metadata(config, name)


def rope_factors(config: ModelConfig) -> Tensor | None:
    """Return the divisor of each rotary frequency: (D / 2,), or None when a key says it all."""
    if config.rope_scaling is None or config.rope_scaling.rope_type != "llama3":
        return None
    plain = inverse_frequencies(dataclasses.replace(config, rope_scaling=None))
    factors = plain / inverse_frequencies(config)  # (D,), both halves alike
    return factors[: config.head_dim // 2].to(torch.float32)


def _scaling_metadata(config: ModelConfig, name: str) -> dict[str, Value]:
    scaling = config.rope_scaling
    if scaling is None:
        return {}
    if scaling.rope_type == "linear":
        return {
            f"{name}.rope.scaling.type": "linear",
            f"{name}.rope.scaling.factor": float(scaling.factor),
        }
    numbers = {key: value for key, value in scaling.to_dict().items() if key != "rope_type"}
    return {f"llmlab.rope.{key}": value for key, value in numbers.items()}


def _check(config: ModelConfig, name: str) -> None:
    if config.is_gpt2 and config.hidden_act == "gelu":
        raise ModelError(
            "hidden_act='gelu' is GELU itself, and llama.cpp computes GPT-2 with its tanh form; "
            "train with hidden_act='gelu_new'"
        )
    width = config.num_attention_heads * config.head_dim
    if name == "qwen2" and width != config.hidden_size:
        raise ModelError(
            f"num_attention_heads x head_dim = {width} is not hidden_size={config.hidden_size}, "
            "which llama.cpp wants of Qwen2; use Qwen3 or Llama for such heads"
        )
    scaling = config.rope_scaling
    kind = scaling.rope_type if scaling else "linear"
    if kind not in ("linear", "llama3"):
        raise ModelError(
            f"rope_type={kind!r} is not written to GGUF; those written are linear and llama3"
        )
    if kind == "llama3" and name != "llama":
        raise ModelError(
            f"rope_type='llama3' is computed by llama.cpp for Llama only, not for "
            f"{config.architecture}; use rope_type='linear'"
        )
