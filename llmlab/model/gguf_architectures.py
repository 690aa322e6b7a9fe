"""What a GGUF file's metadata mean in Hugging Face's words, and which tensor is which parameter.

Not here: reading the file (gguf.py), names and layouts (gguf_names.py), building the model
(gguf_import.py), the tokenizer (gguf_tokenizer.py), the way back (gguf_metadata.py).
"""

from typing import Any

import numpy as np

from llmlab.errors import ModelError
from llmlab.model.config_json import ARCHITECTURES
from llmlab.model.gguf import GgufFile
from llmlab.model.gguf_names import CLASSES, ROPE_FACTORS, hf_layout, hf_names
from llmlab.model.gguf_rope import read_scaling, short


def hf_config(file: GgufFile) -> dict[str, Any]:
    """Return the config.json that says what the file's metadata say.

    Raises:
        ModelError: the architecture or a feature of it is not read here, or a key is missing.
    """
    name = architecture(file)
    config = _gpt2_config(file) if name == "gpt2" else _decoder_config(file, name)
    class_name = CLASSES[name]
    return config | {
        "architectures": [class_name],
        "model_type": next(key for key, value in ARCHITECTURES.items() if value == class_name),
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": _tied(file),
    }


def architecture(file: GgufFile) -> str:
    """Return `llama`, `qwen2`, `qwen3`, `qwen3moe` or `gpt2`.

    Raises:
        ModelError: the file holds another architecture, or no token embedding.
    """
    name = str(file.metadata.get("general.architecture", ""))
    if name not in CLASSES:
        raise ModelError(
            f"{file.path} holds the architecture {name!r}; those read are "
            f"{', '.join(sorted(CLASSES))}"
        )
    if "token_embd.weight" not in file.tensors:
        raise ModelError(f"{file.path} has no token_embd.weight; it is not a whole language model")
    return name


def hf_weights(file: GgufFile, config: dict[str, Any]) -> dict[str, list[str]]:
    """Map each tensor of the file to the parameters on disk that it holds, experts one by one.

    Raises:
        ModelError: the file has a tensor that this architecture does not have.
    """
    name = architecture(file)
    places = {}
    for tensor in file.tensors:
        if tensor == ROPE_FACTORS or (tensor == "output.weight" and config["tie_word_embeddings"]):
            continue
        places[tensor] = hf_names(tensor, name, config.get("num_experts", 0))
        if not places[tensor]:
            raise ModelError(
                f"{file.path} has the tensor {tensor!r}, which {name} does not have here; the "
                "model is a variant that is not read"
            )
    return places


def hf_array(file: GgufFile, tensor: str, config: dict[str, Any]) -> np.ndarray:
    """Return a tensor as float32 in the order in which Hugging Face's classes keep it."""
    heads = config.get("num_attention_heads", 0), config.get("num_key_value_heads", 0)
    array = hf_layout(file.array(tensor), tensor, architecture(file), heads)
    return np.ascontiguousarray(array)


def _tied(file: GgufFile) -> bool:
    """Whether the output layer is the token embedding: absent, or the same bytes again."""
    if "output.weight" not in file.tensors:
        return True
    output, embedding = file.tensors["output.weight"], file.tensors["token_embd.weight"]
    same_kind = (output.block_format, output.shape) == (embedding.block_format, embedding.shape)
    return same_kind and np.array_equal(file.data("output.weight"), file.data("token_embd.weight"))


def _decoder_config(file: GgufFile, name: str) -> dict[str, Any]:
    num_heads = int(_value(file, f"{name}.attention.head_count"))
    hidden_size = int(_value(file, f"{name}.embedding_length"))
    default_dim = file.metadata.get(f"{name}.rope.dimension_count", hidden_size // num_heads)
    head_dim = int(file.metadata.get(f"{name}.attention.key_length", default_dim))
    _refuse_variants(file, name, head_dim)
    config = {
        "hidden_size": hidden_size,
        "intermediate_size": int(_value(file, f"{name}.feed_forward_length")),
        "num_hidden_layers": int(_value(file, f"{name}.block_count")),
        "num_attention_heads": num_heads,
        "num_key_value_heads": int(file.metadata.get(f"{name}.attention.head_count_kv", num_heads)),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": int(_value(file, f"{name}.context_length")),
        "rms_norm_eps": short(_value(file, f"{name}.attention.layer_norm_rms_epsilon")),
        "rope_theta": short(file.metadata.get(f"{name}.rope.freq_base", 10000.0)),
        "rope_scaling": read_scaling(file, name, head_dim),
        "attention_bias": name != "qwen2" and "blk.0.attn_q.bias" in file.tensors,
    }
    if name == "llama":
        config["mlp_bias"] = "blk.0.ffn_up.bias" in file.tensors
    if name == "qwen3moe":
        config |= {
            "num_experts": int(_value(file, f"{name}.expert_count")),
            "num_experts_per_tok": int(_value(file, f"{name}.expert_used_count")),
            "moe_intermediate_size": int(_value(file, f"{name}.expert_feed_forward_length")),
            "norm_topk_prob": True,
        }
    return config


def _refuse_variants(file: GgufFile, name: str, head_dim: int) -> None:
    rotated = file.metadata.get(f"{name}.rope.dimension_count", head_dim)
    if rotated != head_dim:
        raise ModelError(
            f"{file.path} rotates {rotated} of {head_dim} dimensions a head; "
            "partial rotary embeddings are not read"
        )
    for key in ("expert_count", "attention.sliding_window"):
        value = file.metadata.get(f"{name}.{key}", 0)
        if value and (key, name) != ("expert_count", "qwen3moe"):
            raise ModelError(
                f"{file.path} has {name}.{key}={value}, which is not read; give a model with full "
                "attention, dense or of Qwen3's mixture of experts"
            )


def _gpt2_config(file: GgufFile) -> dict[str, Any]:
    return {
        "n_embd": int(_value(file, "gpt2.embedding_length")),
        "n_layer": int(_value(file, "gpt2.block_count")),
        "n_head": int(_value(file, "gpt2.attention.head_count")),
        "n_inner": int(_value(file, "gpt2.feed_forward_length")),
        "n_positions": int(_value(file, "gpt2.context_length")),
        "layer_norm_epsilon": short(_value(file, "gpt2.attention.layer_norm_epsilon")),
        "activation_function": "gelu_new",
    }


def _value(file: GgufFile, key: str) -> Any:
    if key not in file.metadata:
        raise ModelError(f"{file.path} lacks the metadata {key!r}; the file is incomplete")
    value = file.metadata[key]
    if not isinstance(value, int | float):
        raise ModelError(f"{file.path}: {key} is not one number; models that vary it are not read")
    return value
