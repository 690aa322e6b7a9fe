"""What a GGUF file's metadata and tensor names mean in Hugging Face's words.

Not here: reading the file (gguf.py), building the model (gguf_import.py), the tokenizer
(gguf_tokenizer.py). Four architectures: llama, qwen2, qwen3, gpt2.

Two things are stored otherwise than Hugging Face stores them. In `llama`, the rows of the query and
key projections are permuted inside each head, because llama.cpp rotates neighbouring pairs
(2i, 2i+1) where Hugging Face rotates (i, i + D/2). In `gpt2`, the linear layers are transposed
to (out, in), where Hugging Face's Conv1D keeps (in, out).
"""

import re
from typing import Any

import numpy as np

from llmlab.errors import ModelError
from llmlab.model.gguf import GgufFile

_DECODER_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GPT2_NAMES = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}
_TRANSPOSED = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")
_ROPE_FACTORS = "rope_freqs.weight"


def hf_config(file: GgufFile) -> dict[str, Any]:
    """Return the config.json that says what the file's metadata say.

    Raises:
        ModelError: the architecture or a feature of it is not read here, or a key is missing.
    """
    name = architecture(file)
    config = _gpt2_config(file) if name == "gpt2" else _decoder_config(file, name)
    return config | {
        "architectures": [_CLASSES[name]],
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
    if name not in _CLASSES:
        raise ModelError(
            f"{file.path} holds the architecture {name!r}; those read are "
            f"{', '.join(sorted(_CLASSES))}"
        )
    if "token_embd.weight" not in file.tensors:
        raise ModelError(f"{file.path} has no token_embd.weight; it is not a whole language model")
    return name


def hf_weights(file: GgufFile, config: dict[str, Any]) -> dict[str, str]:
    """Map each parameter name of the model to the tensor of the file that holds it.

    Raises:
        ModelError: the file has a tensor that this architecture does not have.
    """
    names = _GPT2_NAMES if config["model_type"] == "gpt2" else _DECODER_NAMES
    places = {}
    for tensor in file.tensors:
        if tensor == _ROPE_FACTORS or (tensor == "output.weight" and config["tie_word_embeddings"]):
            continue
        places[_hf_name(tensor, names, file)] = tensor
    return places


def hf_array(file: GgufFile, tensor: str, config: dict[str, Any]) -> np.ndarray:
    """Return a tensor as float32 in the order in which Hugging Face's classes keep it."""
    array = file.array(tensor)
    if config["model_type"] == "gpt2":
        transposed = tensor.endswith(".weight") and tensor.split(".")[-2] in _TRANSPOSED
        return np.ascontiguousarray(array.T) if transposed else array
    if config["model_type"] == "llama":
        if ".attn_q." in tensor:
            return halves_from_pairs(array, config["num_attention_heads"])
        if ".attn_k." in tensor:
            return halves_from_pairs(array, config["num_key_value_heads"])
    return array


def halves_from_pairs(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Reorder the rows of each head from rotary pairs (2i, 2i+1) to pairs (i, i + D/2).

    Args:
        rows: a weight `(H * D, E)` or a bias `(H * D,)`.
        num_heads: H.
    """
    pairs = rows.reshape(num_heads, -1, 2, *rows.shape[1:])  # (H, D/2, 2, ...)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def _hf_name(tensor: str, names: dict[str, str], file: GgufFile) -> str:
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", tensor)
    if match is None or match[2] not in names:
        raise ModelError(
            f"{file.path} has the tensor {tensor!r}, which {file.metadata['general.architecture']} "
            "does not have here; the model is a variant that is not read"
        )
    prefix = (
        "" if match[1] is None else ("transformer.h." if "attn_qkv" in names else "model.layers.")
    )
    layer = "" if match[1] is None else f"{int(match[1])}."
    return f"{prefix}{layer}{names[match[2]]}.{match[3]}"


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
    if _ROPE_FACTORS in file.tensors:
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

    The divisor of a frequency is 1 for wavelengths under 8192/4, `factor` for those over 8192/1,
    and interpolated between (arXiv 2407.21783, and the Llama 3.1 release).
    """
    stored = file.array(_ROPE_FACTORS).astype(np.float64)
    theta = float(file.metadata.get(f"{name}.rope.freq_base", 10000.0))
    factor, low, high, original_len = float(stored.max()), 1.0, 4.0, 8192
    wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((original_len / wavelengths - low) / (high - low), 0.0, 1.0)
    expected = 1.0 / ((1.0 - smooth) / factor + smooth)
    if stored.shape != expected.shape or not np.allclose(stored, expected, rtol=1e-4):
        raise ModelError(
            f"{file.path} has rotary factors ({_ROPE_FACTORS}) that are not Llama 3's; "
            "such a scaling is not read"
        )
    return {
        "rope_type": "llama3",
        "factor": _short(factor),
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original_len,
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
