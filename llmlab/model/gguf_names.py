"""How GGUF names and lays out the tensors of each architecture, beside Hugging Face's way.

Two things are stored otherwise than Hugging Face stores them. In `llama`, the rows of the query and
key projections are permuted inside each head, because llama.cpp rotates neighbouring pairs
(2i, 2i+1) where Hugging Face rotates (i, i + D/2). In `gpt2`, the linear layers are transposed
to (out, in), where Hugging Face's Conv1D keeps (in, out). In `qwen3moe`, one tensor holds a matrix
of every expert.

Not here: metadata (gguf_architectures.py reads them, gguf_metadata.py writes them), number formats.
Source: the names that the `gguf` package and llama.cpp use.
"""

import re
from typing import Any

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
    "ffn_gate_inp": "mlp.gate",
}
_EXPERT_NAMES = {
    "ffn_gate_exps": "gate_proj",
    "ffn_up_exps": "up_proj",
    "ffn_down_exps": "down_proj",
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
CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3moe": "Qwen3MoeForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}
"""GGUF's name of an architecture, and the class of transformers."""

ROPE_FACTORS = "rope_freqs.weight"
"""The tensor with a divisor for each rotary frequency (Llama 3's scaling)."""

_TRANSPOSED = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")


def hf_names(tensor: str, architecture: str, num_experts: int = 0) -> list[str]:
    """Return Hugging Face's names of what a tensor of a file holds; none when it is unknown.

    A tensor of experts holds a matrix of each, for which model folders have a name each.
    """
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", tensor)
    if match is None:
        return []
    layer = f"{_layers_of(architecture)}{int(match[1])}." if match[1] else ""
    if match[2] in _EXPERT_NAMES and architecture == "qwen3moe":
        matrix = _EXPERT_NAMES[match[2]]
        return [f"{layer}mlp.experts.{at}.{matrix}.weight" for at in range(num_experts)]
    names = _names_of(architecture)
    return [f"{layer}{names[match[2]]}.{match[3]}"] if match[2] in names else []


def gguf_name(parameter: str, architecture: str) -> str | None:
    """Return the tensor of a file that holds a parameter of a model folder, or None."""
    layers = re.escape(_layers_of(architecture))
    match = re.fullmatch(rf"(?:{layers}(\d+)\.)?(.+)\.(weight|bias)", parameter)
    if match is None:
        return None
    names = {hf: name for name, hf in _names_of(architecture).items()}
    names |= {f"mlp.experts.{hf}": name for name, hf in _EXPERT_NAMES.items()}
    module = re.sub(r"\.experts\.\d+\.", ".experts.", match[2])
    if module not in names:
        return None
    layer = f"blk.{match[1]}." if match[1] else ""
    return f"{layer}{names[module]}.{match[3]}"


def hf_layout(array: Any, tensor: str, architecture: str, heads: tuple[int, int]) -> Any:
    """Bring a tensor of a file into the order in which Hugging Face's classes keep it.

    Args:
        array: of numpy or torch.
        tensor: its name in the file.
        architecture: GGUF's name of it.
        heads: H and G.
    """
    if num := _permuted_heads(tensor, architecture, heads):
        return halves_from_pairs(array, num)
    return array.T if _is_transposed(tensor, architecture) else array


def gguf_layout(array: Any, tensor: str, architecture: str, heads: tuple[int, int]) -> Any:
    """Undo `hf_layout`."""
    if num := _permuted_heads(tensor, architecture, heads):
        return pairs_from_halves(array, num)
    return array.T if _is_transposed(tensor, architecture) else array


def is_stacked(tensor: str) -> bool:
    """Whether a tensor of a file holds a matrix of each expert."""
    return tensor.endswith("_exps.weight")


def gguf_shape(shape: tuple[int, ...], tensor: str, architecture: str) -> tuple[int, ...]:
    """Return the shape in a file of a tensor that has this one in Hugging Face's classes."""
    return shape[::-1] if _is_transposed(tensor, architecture) else shape


def halves_from_pairs(rows: Any, num_heads: int) -> Any:
    """Reorder the rows of each head from rotary pairs (2i, 2i+1) to pairs (i, i + D/2).

    Args:
        rows: a weight `(H * D, E)` or a bias `(H * D,)`, of numpy or torch.
        num_heads: H.
    """
    pairs = rows.reshape(num_heads, -1, 2, *rows.shape[1:])  # (H, D/2, 2, ...)
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def pairs_from_halves(rows: Any, num_heads: int) -> Any:
    """Undo `halves_from_pairs`."""
    halves = rows.reshape(num_heads, 2, -1, *rows.shape[1:])  # (H, 2, D/2, ...)
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _permuted_heads(tensor: str, architecture: str, heads: tuple[int, int]) -> int:
    if architecture != "llama":
        return 0
    return heads[0] if ".attn_q." in tensor else heads[1] if ".attn_k." in tensor else 0


def _is_transposed(tensor: str, architecture: str) -> bool:
    return (
        architecture == "gpt2"
        and tensor.endswith(".weight")
        and tensor.split(".")[-2] in _TRANSPOSED
    )


def _names_of(architecture: str) -> dict[str, str]:
    return _GPT2_NAMES if architecture == "gpt2" else _DECODER_NAMES


def _layers_of(architecture: str) -> str:
    return "transformer.h." if architecture == "gpt2" else "model.layers."
