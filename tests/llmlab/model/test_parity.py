"""Our models against transformers': logits, losses and greedy text, in both directions."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from llmlab.model import LanguageModel, ModelConfig, build_model, load_weights, save_model
from llmlab.model.folder import load_config
from llmlab.model.generation import generate_ids
from llmlab.model.rope_config import RopeScaling
from llmlab.model.window_config import FULL, SLIDING
from tests.tiny import tiny_model, tiny_tokenizer

# Same operations in float32, order of summation aside.
ATOL = 1e-5

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2_SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3: dict[str, Any] = {
    "rope_theta": 500_000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}
LINEAR: dict[str, Any] = {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}
DYNAMIC: dict[str, Any] = {
    "max_position_embeddings": 16,
    "rope_scaling": {"rope_type": "dynamic", "factor": 2.0},
}
YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN_IN_FULL: dict[str, Any] = {
    **YARN,
    "beta_fast": 8.0,
    "beta_slow": 0.5,
    "mscale": 0.8,
    "mscale_all_dim": 0.3,
    "truncate": False,
}
WINDOW: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 7}
EXPERTS: dict[str, Any] = {
    **SIZES,
    "head_dim": 16,
    "moe_intermediate_size": 24,
    "num_experts": 5,
    "num_experts_per_tok": 2,
}
MULTI_QUERY: dict[str, Any] = {**SIZES, "num_key_value_heads": 1}

THEIRS: dict[str, PretrainedConfig] = {
    "qwen3": Qwen3Config(**SIZES, head_dim=16),
    "qwen3-tied": Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=True),
    "llama": LlamaConfig(**SIZES),
    "llama-tied": LlamaConfig(**SIZES, tie_word_embeddings=True, rms_norm_eps=1e-5),
    "llama-llama3": LlamaConfig(**SIZES, **LLAMA3),
    "llama-linear": LlamaConfig(**SIZES, **LINEAR),
    "llama-dynamic": LlamaConfig(**SIZES | DYNAMIC),
    "llama-yarn": LlamaConfig(**SIZES | {"rope_scaling": {**YARN}}),
    "qwen3-yarn": Qwen3Config(**SIZES | {"rope_scaling": {**YARN_IN_FULL}}, head_dim=16),
    "qwen2-yarn": Qwen2Config(**SIZES | {"rope_scaling": {**YARN, "attention_factor": 1.5}}),
    "llama-multi-query": LlamaConfig(**MULTI_QUERY),
    "qwen2": Qwen2Config(**SIZES),
    "qwen2-tied": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen2-window": Qwen2Config(**SIZES, **WINDOW, max_window_layers=1),
    "qwen3-window": Qwen3Config(
        **SIZES,
        **WINDOW,
        head_dim=16,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "mistral-window": MistralConfig(**SIZES, head_dim=16, sliding_window=9),
    "moe": Qwen3MoeConfig(**EXPERTS),
    "moe-normalised-window": Qwen3MoeConfig(**EXPERTS, **WINDOW, norm_topk_prob=True),
    "moe-some-dense": Qwen3MoeConfig(**EXPERTS, decoder_sparse_step=2, tie_word_embeddings=True),
    "moe-dense-by-name": Qwen3MoeConfig(**EXPERTS, mlp_only_layers=[0, 2]),
    "gpt2": GPT2Config(**GPT2_SIZES),
    "gpt2-gelu": GPT2Config(**GPT2_SIZES, n_inner=100, activation_function="gelu"),
}


def random_model(config: PretrainedConfig) -> Any:
    """A transformers model whose every parameter is noise, biases and norms included."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def ours_from(folder: Path) -> LanguageModel:
    model = build_model(load_config(folder)).eval()
    load_weights(model, folder)
    return model


@pytest.fixture(params=sorted(THEIRS))
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, LanguageModel]:
    theirs = random_model(THEIRS[request.param])
    theirs.save_pretrained(tmp_path)
    return theirs, ours_from(tmp_path)


def test_logits_of_a_folder_that_transformers_saved(pair):
    theirs, ours = pair
    input_ids = torch.randint(0, 97, (2, 40))
    with torch.inference_mode():
        expected = theirs(input_ids).logits
        torch.testing.assert_close(ours(input_ids), expected, atol=ATOL, rtol=0)
    assert expected.std() > 0.1


def test_loss_and_gradient(pair):
    theirs, ours = pair
    input_ids = torch.randint(0, 97, (2, 41))
    labels = input_ids.clone()
    labels[0, 5:20] = -100
    input_ids, labels = input_ids[:, :-1], labels[:, 1:].contiguous()
    routed = {} if ours.config.experts is None else {"output_router_logits": True}
    output = theirs(input_ids, labels=labels, shift_labels=labels, **routed)
    output.loss.backward()
    expected = output.loss  # with the balancing loss, which our gradient has and our value not
    if ours.config.experts is not None:
        expected = expected - ours.config.experts.router_aux_loss_coef * output.aux_loss
    loss = ours.loss(input_ids, labels)
    loss.backward()
    torch.testing.assert_close(loss, expected, atol=ATOL, rtol=0)
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=ATOL, rtol=1e-4)


def test_greedy_text(pair):
    theirs, ours = pair
    if ours.config.max_position_embeddings < 40:
        pytest.skip("generation here ends at max_position_embeddings, transformers' does not")
    prompt = torch.randint(3, 97, (1, 10))
    expected = theirs.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=30,
        do_sample=False,
        pad_token_id=0,
    )[0, 10:].tolist()
    got = list(generate_ids(ours, prompt[0].tolist(), max_tokens=30, stop_token_ids={2}))
    assert got == expected


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("qwen3", {}),
        ("qwen3", {"sliding_window": 8, "layer_types": (SLIDING, FULL, SLIDING)}),
        ("llama", {"rope_scaling": RopeScaling(**YARN)}),
        ("mistral", {"sliding_window": 8}),
        ("qwen2", {"sliding_window": 8}),
        ("qwen3_moe", {}),
        ("qwen3_moe", {"sliding_window": 8}),
        ("gpt2", {}),
    ],
)
def test_transformers_loads_our_folder(
    architecture: str, changes: dict[str, Any], tied: bool, tmp_path: Path
):
    tokenizer = tiny_tokenizer()
    ours = tiny_model(
        architecture, tie_word_embeddings=tied, vocab_size=tokenizer.vocab_size + 7, **changes
    )
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    folder = tmp_path / "model"
    save_model(ours, tokenizer, folder)
    theirs, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    input_ids = torch.randint(0, tokenizer.vocab_size, (2, 40))
    with torch.inference_mode():
        torch.testing.assert_close(
            ours(input_ids), theirs.eval()(input_ids).logits, atol=ATOL, rtol=0
        )
    prompt = input_ids[:1, :12]
    expected = theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, do_sample=False
    )[0, 12:].tolist()
    stops = set(theirs.generation_config.eos_token_id)
    got = list(generate_ids(ours, prompt[0].tolist(), max_tokens=20, stop_token_ids=stops))
    assert got == expected
    assert theirs.generation_config.eos_token_id == sorted(
        tokenizer.stop_token_ids, key=lambda i: (i != tokenizer.eos_token_id, i)
    )
    assert theirs.config.pad_token_id == tokenizer.pad_token_id


@pytest.mark.parametrize("name", sorted(THEIRS))
def test_config_survives_both_writers(name: str, tmp_path: Path):
    THEIRS[name].save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    raw.setdefault("architectures", None)
    ours = ModelConfig.from_dict(raw)
    assert ModelConfig.from_dict(ours.to_dict()) == ours
    back = type(THEIRS[name]).from_dict(ours.to_dict())
    assert ModelConfig.from_dict(back.to_dict()) == ours


@pytest.mark.parametrize("name", ["llama-llama3", "llama-linear", "llama-yarn", "qwen3"])
def test_both_spellings_of_rope(name: str):
    raw = THEIRS[name].to_dict()
    old = {key: value for key, value in raw.items() if key != "rope_parameters"}
    parameters = dict(raw["rope_parameters"])
    old["rope_theta"] = parameters.pop("rope_theta")
    old["rope_scaling"] = None if parameters["rope_type"] == "default" else parameters
    assert ModelConfig.from_dict(old) == ModelConfig.from_dict(raw)
