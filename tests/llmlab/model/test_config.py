"""ModelConfig: numbers that are derived, files that are refused, and imports that stay light."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llmlab.errors import ModelError
from llmlab.model import ModelConfig, build_model
from llmlab.model.config_json import ARCHITECTURES
from llmlab.model.presets import PRESETS
from llmlab.model.window_config import FULL, SLIDING
from tests.tiny import tiny_config

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_num_parameters_counts_what_is_built(architecture: str, tied: bool):
    config = tiny_config(architecture, tie_word_embeddings=tied)
    model = build_model(config)
    assert config.num_parameters == sum(parameter.numel() for parameter in model.parameters())


def test_flops_and_cache_of_a_hand_counted_model():
    config = tiny_config("llama")  # E=48, F=80, L=3, H=4, G=2, D=16, V=384, tied
    layer = 48 * 64 + 2 * 48 * 32 + 64 * 48 + 3 * 48 * 80
    multiplied = 3 * layer + 384 * 48 + 7 * 48  # the 7 norms count like the rest
    assert config.flops_per_token(100) == 6 * multiplied + 6 * 3 * 64 * 100
    assert config.kv_bytes_per_token(4) == 2 * 3 * 2 * 16 * 4


@pytest.mark.parametrize("architecture", ["qwen3", "qwen3_moe", "llama", "gpt2", "mistral"])
def test_flops_are_those_torch_counts(architecture: str):
    config = tiny_config(architecture, tie_word_embeddings=True)
    with torch.device("cpu"):
        model, dense = build_model(config), FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), dense, torch.no_grad():
        model(torch.zeros(2, 64, dtype=torch.int64))
    forward = config.flops_per_token(64) / 3 * 2 * 64
    # Torch counts attention to the future too, and no norm.
    future = 2 * 64 * 2 * config.num_attention_heads * config.head_dim * 64 * 3
    counted = dense.get_total_flops() + expert_flops(config, num_tokens=2 * 64)
    assert counted - future == pytest.approx(forward, rel=0.02)


def expert_flops(config: ModelConfig, num_tokens: int) -> int:
    """FLOPs of the experts' own operation, which torch's counter does not know."""
    if config.experts is None:
        return 0
    inner = config.experts.moe_intermediate_size * config.experts.num_experts_per_tok
    return 2 * num_tokens * config.num_hidden_layers * 3 * inner * config.hidden_size


def test_a_window_saves_flops():
    config = tiny_config("qwen3", sliding_window=10, layer_types=(SLIDING, FULL, SLIDING))
    full = tiny_config("qwen3")
    # Of 40 tokens 10 at most are seen: on average 10 - 10²/80 = 8.75 instead of 20.
    saved = 2 * 12 * 64 * (20 - 8.75)
    assert full.flops_per_token(40) - config.flops_per_token(40) == saved


def test_ladder():
    sizes = [ModelConfig.of_depth(depth, vocab_size=8192).num_parameters for depth in range(1, 41)]
    assert sizes == sorted(sizes)
    assert 1e6 < sizes[1] < 2e6
    assert 0.9e9 < sizes[27] < 1.1e9
    shape = ModelConfig.of_depth(20, vocab_size=8192)
    assert (shape.hidden_size, shape.num_attention_heads, shape.num_key_value_heads) == (
        1280,
        20,
        5,
    )


@pytest.mark.parametrize("depth", [1, 7, 8, 13, 16, 64])
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_every_depth_makes_every_architecture(depth: int, architecture: str):
    shape = ModelConfig.of_depth(depth, vocab_size=512, architecture=architecture)
    assert shape.num_hidden_layers == depth
    assert shape.intermediate_size % 64 == 0
    assert ModelConfig.from_dict(shape.to_dict()) == shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sliding_window": 0}, "sliding_window=0 is not a positive"),
        ({"layer_types": (FULL,) * 3}, "needs a sliding_window"),
        ({"sliding_window": 4, "layer_types": (FULL, SLIDING)}, "for each of the 3 layers"),
        ({"sliding_window": 4, "layer_types": (FULL, SLIDING, "chunked")}, "'chunked'"),
    ],
)
def test_windows_that_cannot_be(changes: dict[str, Any], message: str):
    with pytest.raises(ModelError, match=message):
        tiny_config("qwen3", **changes)


def test_layers_of_a_mistral_are_alike():
    with pytest.raises(ModelError, match="layers of MistralForCausalLM are all alike"):
        tiny_config("mistral", sliding_window=4, layer_types=(FULL, SLIDING, FULL))


def test_defaults_of_a_short_llama_config():
    config = ModelConfig.from_dict(LLAMA)
    assert (config.num_key_value_heads, config.head_dim) == (4, 16)
    assert (config.rope_theta, config.tie_word_embeddings) == (10_000.0, False)


@pytest.mark.parametrize(
    "harmless",
    [
        {"torch_dtype": "bfloat16", "transformers_version": "4.1", "_name_or_path": "x"},
        {"attention_dropout": 0.1, "use_cache": True, "pretraining_tp": 1},
        {"attention_bias": False, "mlp_bias": False, "rope_scaling": None},
        {"sliding_window": 4096, "use_sliding_window": False},
        {"layer_types": ["full_attention", "full_attention"]},
        {"some_new_feature": False, "another": None},
        {"architectures": None},
    ],
)
def test_harmless_fields_are_ignored(harmless: dict[str, Any]):
    assert ModelConfig.from_dict(LLAMA | harmless) == ModelConfig.from_dict(LLAMA)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_sise": 64}, r"unknown config field hidden_sise=64; did you mean 'hidden_size'"),
        ({"num_kv_heads": 2}, r"unknown config field num_kv_heads=2"),
        ({"tie_word_embedings": False}, r"did you mean 'tie_word_embeddings'"),
        ({"attention_bias": True}, r"attention_bias=True is not supported; supported: False"),
        ({"mlp_bias": True}, r"mlp_bias=True"),
        ({"use_sliding_window": True}, r"LlamaForCausalLM has no sliding window"),
        ({"layer_types": ["sliding_attention"] * 2}, r"LlamaForCausalLM has no sliding window"),
        ({"quantization_config": {"bits": 4}}, r"quantization_config=\{'bits': 4\}"),
        ({"num_local_experts": 8}, r"num_local_experts=8"),
        ({"hidden_act": "relu"}, r"hidden_act='relu'.*supported: silu"),
        ({"logit_softcap": 30.0}, r"unknown config field logit_softcap=30.0; correct its name"),
        ({"architectures": ["MixtralForCausalLM"]}, r"'MixtralForCausalLM'.*LlamaForCausalLM"),
        ({"architectures": None, "model_type": "bert"}, r"model_type='bert'.*GPT2LMHeadModel"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, r"rope_type='longrope'.*yarn"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 32}},
            r"rope_type='linear' has no beta_fast=32",
        ),
        ({"rope_scaling": {"type": "linear"}}, r"needs factor"),
        ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, r"needs low_freq_factor"),
        ({"rope_parameters": {"type": "linear", "facto": 2.0}}, r"did you mean 'factor'"),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor=0.5"),
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, r"=4 is not a multiple of .*=3"),
        ({"head_dim": 15}, r"head_dim=15 is odd"),
        ({"vocab_size": 0}, r"vocab_size=0 is not a positive whole number"),
        ({"vocab_size": "100"}, r"vocab_size='100' is not a positive whole number"),
    ],
)
def test_what_would_change_the_computation_is_refused(change: dict[str, Any], message: str):
    with pytest.raises(ModelError, match=message):
        ModelConfig.from_dict(LLAMA | change)


def test_a_missing_field_is_named():
    raw = {key: value for key, value in LLAMA.items() if key != "intermediate_size"}
    with pytest.raises(ModelError, match=r"config\.json lacks intermediate_size"):
        ModelConfig.from_dict(raw)


def test_gpt2_sizes_must_fit():
    with pytest.raises(ModelError, match=r"got 4 x 16, 48"):
        tiny_config("gpt2", head_dim=16)


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("architecture", [None, *sorted(ARCHITECTURES)])
def test_presets_build(name: str, architecture: str | None):
    config = ModelConfig.preset(
        name, vocab_size=512, max_position_embeddings=128, architecture=architecture
    )
    assert (config.vocab_size, config.max_position_embeddings) == (512, 128)
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_known_sizes():
    smollm2 = ModelConfig.preset("smollm2-135m", vocab_size=49_152)
    assert smollm2.num_parameters == 134_515_008
    quickstart = ModelConfig.preset("quickstart", vocab_size=8192)
    assert 8e6 < quickstart.num_parameters < 9e6


def test_unknown_preset():
    with pytest.raises(ModelError, match=r"no preset 'quickstar'; did you mean 'quickstart'"):
        ModelConfig.preset("quickstar", vocab_size=10)


def test_config_modules_do_not_import_torch():
    code = (
        "import sys, llmlab.model.config, llmlab.model.generate_config\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
