"""Model sizes by name, each tried in practice, and by one dial, the depth.

The vocabulary comes from the tokenizer. Not here: how long to train them and with what
(llmlab/pretrain). Parameter counts are for the default architecture with a tied head and the
vocabulary given.
"""

from typing import Any

from llmlab.errors import ModelError, did_you_mean
from llmlab.model.config_json import ATTENTION_SIZES, RECURRENT
from llmlab.model.experts_config import Experts

PRESETS: dict[str, dict[str, Any]] = {
    # 8.4M parameters at V=8192: real sentences after minutes on a laptop CPU.
    "quickstart": {
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 512,
    },
    # 0.8M parameters at V=65: nanoGPT's shape for characters on a CPU.
    "char": {
        "hidden_size": 128,
        "intermediate_size": 344,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "max_position_embeddings": 256,
    },
    # 5.8M parameters at V=4096.
    "tiny": {
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 512,
    },
    # 22M parameters at V=8192, of which a token uses 8.4M, as many as in quickstart.
    "moe": {
        "architecture": "Qwen3MoeForCausalLM",
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 512,
    },
    # 124M parameters at V=50304: the depth and width of GPT-2 small.
    "nano": {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "head_dim": 64,
        "max_position_embeddings": 1024,
    },
    # 135M parameters at V=49152: SmolLM2-135M, deep and thin.
    "smollm2-135m": {
        "architecture": "LlamaForCausalLM",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "max_position_embeddings": 8192,
        "rope_theta": 100_000.0,
        "rms_norm_eps": 1e-5,
        "initializer_range": 0.041666666666666664,
    },
}

MAX_DEPTH = 64
_ASPECT = 64
_HEAD_DIM = 64


def preset_fields(name: str, architecture: str | None = None) -> dict[str, Any]:
    """Return the fields of a preset, for its own architecture or another.

    Raises:
        ModelError: no such preset.
    """
    if name not in PRESETS:
        raise ModelError(f"no preset {name!r}{did_you_mean(name, PRESETS)}")
    return _adapted(dict(PRESETS[name]), architecture)


def sized_fields(depth: int, architecture: str | None = None) -> dict[str, Any]:
    """Return the fields of a model of the ladder: the width is 64 x depth.

    Heads are 64 wide. From depth 8 on two query heads share a key/value head and from depth 16 on
    four, for which the width is rounded up. The feed-forward layer is 8/3 as wide, a multiple of
    64. Parameters besides the vocabulary's: depth 2 0.4M, 4 3.2M, 8 24M, 12 78M, 20 347M, 28 947M.

    Raises:
        ModelError: depth is not between 1 and 64.
    """
    if not 1 <= depth <= MAX_DEPTH:
        raise ModelError(f"depth={depth} is not between 1 and {MAX_DEPTH}; try 8")
    sharing = 1 if depth < 8 else 2 if depth < 16 else 4
    heads = -(-depth * _ASPECT // (_HEAD_DIM * sharing)) * sharing
    width = heads * _HEAD_DIM
    fields = {
        "hidden_size": width,
        "intermediate_size": -(-width * 8 // (3 * 64)) * 64,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // sharing,
        "head_dim": _HEAD_DIM,
        "max_position_embeddings": 1024,
    }
    return _adapted(fields, architecture)


def _adapted(fields: dict[str, Any], architecture: str | None) -> dict[str, Any]:
    """Give a size what an architecture has otherwise than the rotary decoder."""
    name = architecture or fields.get("architecture", "Qwen3ForCausalLM")
    fields["architecture"] = name
    if name == "GPT2LMHeadModel":
        fields |= {
            "intermediate_size": 4 * fields["hidden_size"],
            "num_key_value_heads": fields["num_attention_heads"],
            "head_dim": fields["hidden_size"] // fields["num_attention_heads"],
            "hidden_act": "gelu_new",
            "rms_norm_eps": 1e-5,
        }
        fields.pop("rope_theta", None)
    elif name == "Qwen3MoeForCausalLM":
        # A token goes through as many numbers as in the dense model, of four times as many.
        fields["experts"] = Experts(
            num_experts=8,
            num_experts_per_tok=2,
            moe_intermediate_size=fields["intermediate_size"] // 2,
            norm_topk_prob=True,
        )
    elif name in RECURRENT.values():
        fields |= {"hidden_act": "tanh", **dict.fromkeys(ATTENTION_SIZES, 0)}
        fields.pop("rope_theta", None)
    return fields
