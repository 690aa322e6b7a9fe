"""What a GGUF file's metadata mean in Hugging Face's words, and which tensor is which parameter.

Not here: reading the file (gguf.py), names and layouts (gguf_names.py), building the model
(gguf_import.py), the tokenizer (gguf_tokenizer.py), the way back (gguf_metadata.py).
"""

from typing import Any

import numpy as np

from llmlab.errors import ModelError
from llmlab.model.gguf import GgufFile
from llmlab.model.gguf_names import CLASSES, ROPE_FACTORS, hf_layout, hf_name

_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def hf_config(file: GgufFile) -> dict[str, Any]:
    """Return the config.json that says what the file's metadata say.

    Raises:
        ModelError: the architecture or a feature of it is not read here, or a key is missing.
    """
    name = architecture(file)
    config = _gpt2_config(file) if name == "gpt2" else _decoder_config(file, name)
    return config | {
        "architectures": [CLASSES[name]],
        "model_type": name,
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": _tied(file),
    }


def architecture(file: GgufFile) -> str:
    """Return `llama`, `qwen2`, `qwen3` or `gpt2`.

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


def hf_weights(file: GgufFile, config: dict[str, Any]) -> dict[str, str]:
    """Map each parameter name of the model to the tensor of the file that holds it.

    Raises:
        ModelError: the file has a tensor that this architecture does not have.
    """
    places = {}
    for tensor in file.tensors:
        if tensor == ROPE_FACTORS or (tensor == "output.weight" and config["tie_word_embeddings"]):
            continue
        name = hf_name(tensor, config["model_type"])
        if name is None:
            raise ModelError(
                f"{file.path} has the tensor {tensor!r}, which {config['model_type']} does not "
                "have here; the model is a variant that is not read"
            )
        places[name] = tensor
    return places


def hf_array(file: GgufFile, tensor: str, config: dict[str, Any]) -> np.ndarray:
    """Return a tensor as float32 in the order in which Hugging Face's classes keep it."""
    heads = config.get("num_attention_heads", 0), config.get("num_key_value_heads", 0)
    array = hf_layout(file.array(tensor), tensor, config["model_type"], heads)
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
        "rms_norm_eps": _short(_value(file, f"{name}.attention.layer_norm_rms_epsilon")),
        "rope_theta": _short(file.metadata.get(f"{name}.rope.freq_base", 10000.0)),
        "rope_scaling": _rope_scaling(file, name, head_dim),
        "attention_bias": name != "qwen2" and "blk.0.attn_q.bias" in file.tensors,
    }
    if name == "llama":
        config["mlp_bias"] = "blk.0.ffn_up.bias" in file.tensors
    return config


def _refuse_variants(file: GgufFile, name: str, head_dim: int) -> None:
    rotated = file.metadata.get(f"{name}.rope.dimension_count", head_dim)
    if rotated != head_dim:
        raise ModelError(
            f"{file.path} rotates {rotated} of {head_dim} dimensions a head; "
            "partial rotary embeddings are not read"
        )
    for key in ("expert_count", "attention.sliding_window"):
        if file.metadata.get(f"{name}.{key}", 0):
            raise ModelError(
                f"{file.path} has {name}.{key}={file.metadata[f'{name}.{key}']}, which is not "
                "read; give a dense model with full attention"
            )


def _gpt2_config(file: GgufFile) -> dict[str, Any]:
    return {
        "n_embd": int(_value(file, "gpt2.embedding_length")),
        "n_layer": int(_value(file, "gpt2.block_count")),
        "n_head": int(_value(file, "gpt2.attention.head_count")),
        "n_inner": int(_value(file, "gpt2.feed_forward_length")),
        "n_positions": int(_value(file, "gpt2.context_length")),
        "layer_norm_epsilon": _short(_value(file, "gpt2.attention.layer_norm_epsilon")),
        "activation_function": "gelu_new",
    }


def _rope_scaling(file: GgufFile, name: str, head_dim: int) -> dict[str, Any] | None:
    """Return Hugging Face's `rope_scaling`, from the metadata or from stored factors."""
    if ROPE_FACTORS in file.tensors:
        return _llama3_scaling(file, name, head_dim)
    kind = file.metadata.get(f"{name}.rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind != "linear":
        raise ModelError(
            f"{file.path} scales its rotary embedding by {kind!r}; linear and llama3 are read"
        )
    return {"rope_type": "linear", "factor": _short(_value(file, f"{name}.rope.scaling.factor"))}


def _llama3_scaling(file: GgufFile, name: str, head_dim: int) -> dict[str, Any]:
    """Recognise Llama 3's scaling, of which a GGUF keeps only the D/2 divisors it leads to.

    The divisor of a frequency is 1 for wavelengths under original length / high, `factor` for those
    over original length / low, and interpolated between (arXiv 2407.21783). Where the file does not
    say these numbers they are those of the Llama 3.1 release.
    """
    stored = file.array(ROPE_FACTORS).astype(np.float64)
    theta = float(file.metadata.get(f"{name}.rope.freq_base", 10000.0))
    said = {key: file.metadata.get(f"llmlab.rope.{key}", value) for key, value in _LLAMA3.items()}
    factor = float(file.metadata.get("llmlab.rope.factor", stored.max()))
    low, high, original_len = said.values()
    wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((original_len / wavelengths - low) / (high - low), 0.0, 1.0)
    expected = 1.0 / ((1.0 - smooth) / factor + smooth)
    if stored.shape != expected.shape or not np.allclose(stored, expected, rtol=1e-4):
        raise ModelError(
            f"{file.path} has rotary factors ({ROPE_FACTORS}) that are not Llama 3's; "
            "such a scaling is not read"
        )
    return {
        "rope_type": "llama3",
        "factor": _short(factor),
        **{
            key: _short(value) if isinstance(value, float) else value for key, value in said.items()
        },
    }


def _value(file: GgufFile, key: str) -> Any:
    if key not in file.metadata:
        raise ModelError(f"{file.path} lacks the metadata {key!r}; the file is incomplete")
    value = file.metadata[key]
    if not isinstance(value, int | float):
        raise ModelError(f"{file.path}: {key} is not one number; models that vary it are not read")
    return value


def _short(value: float) -> float:
    """Return the shortest decimal that is the same float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
