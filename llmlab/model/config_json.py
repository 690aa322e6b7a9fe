"""config.json to plain fields and back, with GPT-2's names mapped in one place.

Not here: what the fields mean (config.py). A field that would change the computation in a way this
library does not implement is refused by name; fields known to be harmless are ignored; any other
field is refused too, for a typo must not silently fall back to a default.
"""

from collections.abc import Mapping
from typing import Any

from llmlab.errors import ModelError, did_you_mean
from llmlab.model import experts_config, window_config
from llmlab.model.experts_config import Experts, read_experts
from llmlab.model.rope_config import RopeScaling, read_rope
from llmlab.model.window_config import read_windows, write_windows

RECURRENT = {
    "rnn": "RNNForCausalLM",
    "lstm": "LSTMForCausalLM",
    "gru": "GRUForCausalLM",
}
"""`model_type` and class of the recurrent baselines; transformers has no such classes."""

ARCHITECTURES = {
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    **RECURRENT,
}
"""`model_type`, Hugging Face's where it has one, and the class it names."""

SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
"""The fields that count something."""

ATTENTION_SIZES = ("intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
"""Those of them that recurrent models do not have: there they are 0."""

FIELDS = (
    *SIZES,
    "rms_norm_eps",
    "rope_theta",
    "hidden_act",
    "tie_word_embeddings",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
"""Fields of config.json that ModelConfig has under the same name."""

_GPT2_NAMES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "n_inner": "intermediate_size",
    "activation_function": "hidden_act",
    "layer_norm_epsilon": "rms_norm_eps",
}

_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "quantization_config": (None,),
    "compression_config": (None,),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "pretraining_tp": (1, None),
    "partial_rotary_factor": (1.0, None),
}
"""Fields that change the computation, and the values that leave it as implemented here."""

_BOOKKEEPING = """
architectures model_type auto_map name_or_path torch_dtype dtype transformers_version license
tokenizer_class attn_implementation use_bfloat16 torchscript tf_legacy_loss
transformers.js_config is_llama_config unsloth_fixed unsloth_version
"""
# Dropout is not implemented: it is off whenever a model is used.
_TRAINING = """
attention_dropout resid_pdrop embd_pdrop attn_pdrop hidden_dropout gradient_checkpointing
chunk_size_feed_forward reorder_and_upcast_attn
"""
_ELSEWHERE = f"rope_scaling rope_parameters n_ctx {' '.join(window_config.FIELDS)}"
_EXPERTS = frozenset((*experts_config.FIELDS, "num_local_experts", "output_router_logits"))
_GENERATION = """
use_cache max_length min_length do_sample early_stopping num_beams num_beam_groups
diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty
no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences prefix
output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id suppress_tokens
remove_invalid_values exponential_decay_length_penalty begin_suppress_tokens
"""
_OTHER_TASKS = """
id2label label2id num_labels finetuning_task task_specific_params problem_type summary_type
summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout return_dict
output_hidden_states output_attentions pruned_heads is_decoder cross_attention_hidden_size
tie_encoder_decoder sep_token_id decoder_start_token_id
"""
_IGNORED = frozenset(
    f"{_BOOKKEEPING} {_TRAINING} {_ELSEWHERE} {_GENERATION} {_OTHER_TASKS}".split()
)
"""Fields that real config files carry and that do not change the computation."""

_DEFAULTS: dict[str, dict[str, Any]] = {
    "Qwen3ForCausalLM": {"num_key_value_heads": 32, "head_dim": 128},
    "Qwen3MoeForCausalLM": {"num_key_value_heads": 4},
    "LlamaForCausalLM": {},
    "MistralForCausalLM": {"num_key_value_heads": 8},
    "Qwen2ForCausalLM": {"num_key_value_heads": 32},
    "GPT2LMHeadModel": {
        "tie_word_embeddings": True,
        "hidden_act": "gelu_new",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 1024,
    },
    **{
        name: {"hidden_act": "tanh", **dict.fromkeys(ATTENTION_SIZES, 0)}
        for name in RECURRENT.values()
    },
}
"""What each class of transformers assumes for a field its config.json leaves out."""


def read_fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the content of a config.json into ModelConfig fields.

    Raises:
        ModelError: another architecture, a field that is unknown or has an unsupported value.
    """
    architecture = _architecture(raw)
    is_gpt2 = architecture == "GPT2LMHeadModel"
    names = _GPT2_NAMES if is_gpt2 else {}
    fields: dict[str, Any] = dict(_DEFAULTS[architecture])
    has_experts = architecture == "Qwen3MoeForCausalLM"
    for key, value in raw.items():
        name = names.get(key, key)
        if name in FIELDS and value is not None:
            fields[name] = value
        elif not (has_experts and key in _EXPERTS):
            _check_other(key, value, names)
    if has_experts:
        fields["experts"] = read_experts(raw)
    theta, scaling = read_rope(raw)
    if theta is not None:
        fields["rope_theta"] = theta
    if isinstance(fields.get("eos_token_id"), list):
        fields["eos_token_id"] = tuple(fields["eos_token_id"])
    _fill_sizes(fields, is_gpt2=is_gpt2)
    fields["sliding_window"], fields["layer_types"] = read_windows(
        architecture, raw, fields.get("num_hidden_layers", 0)
    )
    return {"architecture": architecture, "rope_scaling": scaling, **fields}


def write_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Turn ModelConfig fields into a config.json that stock transformers 4 and 5 load."""
    fields = dict(fields)
    architecture = fields.pop("architecture")
    scaling: RopeScaling | None = fields.pop("rope_scaling")
    experts: Experts | None = fields.pop("experts")
    window, types = fields.pop("sliding_window"), fields.pop("layer_types")
    if isinstance(fields["eos_token_id"], tuple):
        fields["eos_token_id"] = list(fields["eos_token_id"])
    model_type = next(key for key, value in ARCHITECTURES.items() if value == architecture)
    head = {"architectures": [architecture], "model_type": model_type}
    if architecture in RECURRENT.values():
        for name in (*ATTENTION_SIZES, "rope_theta"):
            del fields[name]
        return {**head, **fields}
    if architecture != "GPT2LMHeadModel":
        windows = write_windows(architecture, window, types, fields["num_hidden_layers"])
        rope = {"rope_scaling": scaling.to_dict() if scaling else None}
        return {**head, **fields, **rope, **windows, **(experts.to_dict() if experts else {})}
    for name in ("num_key_value_heads", "head_dim", "rope_theta"):
        del fields[name]
    names = {name: key for key, name in _GPT2_NAMES.items()}
    # transformers would apply its dropout default of 0.1 when such a model is trained on.
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return {**head, **{names.get(key, key): value for key, value in fields.items()}, **dropout}


def _architecture(raw: Mapping[str, Any]) -> str:
    named = raw.get("architectures") or [ARCHITECTURES.get(str(raw.get("model_type")))]
    name = named[0] if isinstance(named, list) else named
    if name is None:
        raise ModelError(
            f"config.json names no supported architecture (model_type={raw.get('model_type')!r}); "
            f"supported: {', '.join(ARCHITECTURES.values())}"
        )
    if name not in _DEFAULTS:
        raise ModelError(
            f"architecture {name!r} is not supported{did_you_mean(str(name), _DEFAULTS)}"
            f" (supported: {', '.join(_DEFAULTS)})"
        )
    return str(name)


def _check_other(key: str, value: Any, names: Mapping[str, str]) -> None:
    known = {*FIELDS, *names}
    if key in known or key in _IGNORED or key.startswith("_"):
        return
    if key in _SUPPORTED:
        if value not in _SUPPORTED[key]:
            allowed = " or ".join(map(repr, _SUPPORTED[key]))
            raise ModelError(f"config field {key}={value!r} is not supported; supported: {allowed}")
        return
    hint = did_you_mean(key, known)
    if value in (None, False) and "did you mean" not in hint:
        return  # a feature that is off
    raise ModelError(
        f"unknown config field {key}={value!r}{hint if 'did you mean' in hint else ''}; "
        "correct its name, or remove it if it does not change the computation"
    )


def _fill_sizes(fields: dict[str, Any], *, is_gpt2: bool) -> None:
    if is_gpt2 and "hidden_size" in fields:
        fields.setdefault("intermediate_size", 4 * fields["hidden_size"])
    heads = fields.get("num_attention_heads")
    if isinstance(heads, int) and heads > 0 and isinstance(fields.get("hidden_size"), int):
        fields.setdefault("num_key_value_heads", heads)
        fields.setdefault("head_dim", fields["hidden_size"] // heads)
