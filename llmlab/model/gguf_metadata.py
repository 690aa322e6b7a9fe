"""The metadata of a GGUF file that say what llama.cpp computes: a model's config in its words.

Not here: the tokenizer's keys (llmlab/tokenizers/files/gguf_vocab.py), rotary scaling
(gguf_rope.py), names of tensors (gguf_names.py), reading (gguf_architectures.py). What llama.cpp
would compute otherwise is refused.
Source: the GGUF specification (github.com/ggml-org/ggml, docs/gguf.md) and what llama.cpp reads.
"""

from llmlab.errors import ModelError
from llmlab.model.config import ModelConfig
from llmlab.model.gguf_names import CLASSES
from llmlab.model.gguf_rope import scaling_metadata
from llmlab.tokenizers.files.gguf_writer import Value

_SAME_AS = {"MistralForCausalLM": "LlamaForCausalLM"}
"""Architectures that GGUF does not tell apart."""


def gguf_architecture(config: ModelConfig) -> str:
    """Return GGUF's name of the architecture.

    Raises:
        ModelError: llama.cpp does not compute this model, or not so.
    """
    wanted = _SAME_AS.get(config.architecture, config.architecture)
    for name, class_name in CLASSES.items():
        if class_name == wanted:
            _check(config, name)
            return name
    raise ModelError(
        f"{config.architecture} has no form in GGUF; those written are "
        f"{', '.join((*CLASSES.values(), *_SAME_AS))}"
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
    metadata = {f"{name}.{key}": value for key, value in (keys | _expert_keys(config)).items()}
    return metadata | scaling_metadata(config, name)


def _expert_keys(config: ModelConfig) -> dict[str, Value]:
    if config.experts is None:
        return {}
    return {
        "expert_count": config.experts.num_experts,
        "expert_used_count": config.experts.num_experts_per_tok,
        "expert_feed_forward_length": config.experts.moe_intermediate_size,
    }


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
    windows = [window for window in config.windows if window is not None]
    if windows and min(windows) < config.max_position_embeddings:
        raise ModelError(
            f"sliding_window={config.sliding_window} is passed over by llama.cpp for "
            f"{config.architecture}; set max_position_embeddings no higher than the window"
        )
    _check_experts(config)


def _check_experts(config: ModelConfig) -> None:
    experts = config.experts
    if experts is None:
        return
    dense = [layer for layer in range(config.num_hidden_layers) if not experts.in_layer(layer)]
    if dense or not experts.norm_topk_prob:
        what = f"layer {dense[0]} is dense" if dense else "norm_topk_prob is false"
        raise ModelError(
            f"{what}, and llama.cpp computes Qwen3's mixture of experts in every layer, with "
            "weights that sum to 1; train with decoder_sparse_step=1 and norm_topk_prob=true"
        )
