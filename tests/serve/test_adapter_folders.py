"""Adapter folders that are broken, foreign or odd: refused by name, with nothing left behind."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmlab.errors import ModelError
from llmlab.finetune import LoraConfig, add_lora, save_adapter
from llmlab.model import load_model
from llmlab.serve import Engine, EngineConfig, SamplingParams
from tests.serve.tiny_adapters import KINDS, expected, write_adapter
from tests.tiny import tiny_model_folder

# peft 0.21 asks transformers 5.23 a question by its former name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

PROMPT = [84, 104, 101, 32, 99]
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, logprobs=0)


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"), "qwen3")


@pytest.fixture(scope="module")
def narrow(qwen3, tmp_path_factory) -> Path:
    return write_adapter(qwen3, tmp_path_factory.mktemp("adapters") / "a", 0, **KINDS["narrow"])


@pytest.fixture(scope="module")
def answer(qwen3, narrow) -> list[int]:
    return expected(qwen3, narrow, PROMPT, 6).token_ids


def start(folder: Path, **changes) -> Engine:
    return Engine(replace(EngineConfig(model=folder, dtype="float32", kv_memory_mb=8), **changes))


def damaged(source: Path, out: Path, **fields) -> Path:
    """Copy an adapter with other fields in its configuration."""
    shutil.copytree(source, out)
    path = out / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return out


def with_weights(source: Path, out: Path, change) -> Path:
    """Copy an adapter with other weights."""
    shutil.copytree(source, out)
    path = out / "adapter_model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    return out


Q = "base_model.model.model.layers.2.self_attn.q_proj.lora_"


def spoil(weights):
    weights[f"{Q}B.weight"][1, 1] = torch.nan


def drop(weights):
    del weights[f"{Q}A.weight"]


def widen(weights):
    weights[f"{Q}A.weight"] = torch.zeros(4, 50)


def rename(weights):
    for part in "AB":
        weights[f"{Q}{part}.weight".replace("q_proj", "x_proj")] = weights.pop(f"{Q}{part}.weight")


def tear(out: Path) -> None:
    path = out / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


BROKEN = {
    "not there": (lambda source, out: out, r"is not an adapter folder"),
    "dora": (lambda a, b: damaged(a, b, use_dora=True), "use_dora=True, which is not supported"),
    "bias": (lambda a, b: damaged(a, b, bias="all"), "bias='all', which is not supported"),
    "other modules": (
        lambda a, b: damaged(a, b, modules_to_save=["lm_head"]),
        r"modules_to_save=\['lm_head'\], which is not supported",
    ),
    "not lora": (lambda a, b: damaged(a, b, peft_type="IA3"), "peft_type='IA3'; only LORA"),
    "rank": (lambda a, b: damaged(a, b, r=5), "has rank 4, adapter_config.json says 5"),
    "alpha": (
        lambda a, b: damaged(a, b, lora_alpha="8"),
        "lora_alpha='8' for .*; it must be above 0",
    ),
    "a number missing": (lambda a, b: with_weights(a, b, drop), "is not plain LoRA .*lora_A"),
    "not finite": (lambda a, b: with_weights(a, b, spoil), "numbers that are not finite"),
    "shape": (
        lambda a, b: with_weights(a, b, widen),
        "q_proj maps 50 numbers to 64, in this model 48",
    ),
    "layer": (lambda a, b: with_weights(a, b, rename), "x_proj, which this model has not"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_refused_and_leaves_nothing(qwen3, narrow, answer, tmp_path, case):
    make, message = BROKEN[case]
    with start(qwen3, max_loras=1) as engine:
        folder = make(narrow, tmp_path / "broken")
        for _ in range(2):
            with pytest.raises(ModelError, match=message):
                engine.load_adapter("a", folder)
        assert engine.adapters == {}
        engine.load_adapter("a", narrow)
        (output,) = engine.generate([PROMPT], GREEDY, adapter="a")
        assert list(output.token_ids) == answer


def test_torn_files(qwen3, narrow, tmp_path):
    torn = damaged(narrow, tmp_path / "torn")
    tear(torn)
    no_json = damaged(narrow, tmp_path / "no_json")
    (no_json / "adapter_config.json").write_text("[" * 100_000)
    pickled = damaged(narrow, tmp_path / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with start(qwen3, max_loras=1) as engine:
        for folder, message in (
            (torn, r"cannot read .*adapter_model.safetensors"),
            (no_json, "adapter_config.json is not JSON"),
            (pickled, r"cannot read .*adapter_model.safetensors"),
        ):
            with pytest.raises(ModelError, match=message):
                engine.load_adapter("a", folder)
        assert engine.adapters == {}


def test_adapters_of_ours_know_their_base(qwen3, tmp_path):
    model, _ = load_model(qwen3)
    config = LoraConfig(rank=2)
    add_lora(model, config)
    save_adapter(model, config, tmp_path / "run" / "adapter", base_model="tiny")
    other = tiny_model_folder(tmp_path, "qwen3", seed=1)
    with start(qwen3, max_loras=1, dtype="bfloat16") as engine:
        engine.load_adapter("own", tmp_path / "run")
    with start(other, max_loras=1) as engine:
        with pytest.raises(ModelError, match="was trained on another base model"):
            engine.load_adapter("own", tmp_path / "run")


def test_what_peft_has_no_use_for_on_linear_layers_changes_nothing(qwen3, narrow, tmp_path):
    odd = damaged(narrow, tmp_path / "odd", fan_in_fan_out=True)
    with start(qwen3, adapters={"odd": odd, "plain": narrow}) as engine:
        one, two = engine.generate([PROMPT] * 2, GREEDY, adapter=["odd", "plain"])
    assert one.logprobs == two.logprobs
