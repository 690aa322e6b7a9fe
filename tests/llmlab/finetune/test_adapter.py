"""Parity with PEFT in both directions, on the transformers model that our folder loads into."""

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from llmlab.errors import ModelError
from llmlab.finetune import (
    LoraConfig,
    MergeConfig,
    add_lora,
    base_fingerprint,
    load_adapter,
    merge,
    save_adapter,
)
from llmlab.finetune.lora import lora_layers
from llmlab.model import load_model
from tests.llmlab.finetune.conftest import ARCHITECTURES, tiny_model
from tests.llmlab.finetune.test_lora import IDS, logits, stir

# peft 0.21 asks transformers 5.23 a question by its former name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

PARITY = {"atol": 1e-5, "rtol": 1e-5}
"""float32; logits are of a magnitude of about 10, sums run in another order."""


def adapted(folder: Path, out: Path, config: LoraConfig) -> Tensor:
    """Save an adapter for the model folder, and return the logits it leads to."""
    model, _ = load_model(folder)
    add_lora(model, config)
    stir(model)
    save_adapter(model, config, out, base_model=str(folder))
    return logits(model)


def theirs(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("rslora", [True, False])
def test_peft_reads_our_adapter(model_folders, tmp_path: Path, architecture: str, rslora: bool):
    config = LoraConfig(rank=4, alpha=6, rslora=rslora)
    ours = adapted(model_folders[architecture], tmp_path / "adapter", config)
    base = AutoModelForCausalLM.from_pretrained(model_folders[architecture])
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(theirs(model), ours, **PARITY)
    torch.testing.assert_close(theirs(model.merge_and_unload()), ours, **PARITY)


@pytest.mark.parametrize(
    ("architecture", "targets"),
    [("qwen3", ["q_proj", "v_proj"]), ("gpt2", ["c_attn"]), ("llama", "all-linear")],
)
def test_we_read_an_adapter_of_peft(model_folders, tmp_path: Path, architecture: str, targets):
    base = AutoModelForCausalLM.from_pretrained(model_folders[architecture])
    config = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=targets,
        task_type="CAUSAL_LM",
        init_lora_weights=False,
        fan_in_fan_out=architecture == "gpt2",
    )
    model = peft.get_peft_model(base, config).eval()
    model.save_pretrained(tmp_path / "adapter")
    ours, _ = load_model(model_folders[architecture])
    read = load_adapter(ours, tmp_path / "adapter")
    assert (read.rank, read.alpha, read.rslora) == (3, 5, False)
    torch.testing.assert_close(logits(ours), theirs(model), **PARITY)


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2"])
def test_part_of_the_layers_round_trips_through_peft(
    model_folders, tmp_path: Path, architecture: str
):
    last = "mlp.c_proj" if architecture == "gpt2" else "layers.1.self_attn.q_proj"
    config = LoraConfig(rank=2, target_modules=(last,))
    ours = adapted(model_folders[architecture], tmp_path / "adapter", config)
    base = AutoModelForCausalLM.from_pretrained(model_folders[architecture])
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(theirs(model), ours, **PARITY)
    again, _ = load_model(model_folders[architecture])
    load_adapter(again, tmp_path / "adapter")
    torch.testing.assert_close(logits(again), ours, atol=0, rtol=0)


def test_peft_writes_the_same_names_and_numbers(model_folders, tmp_path: Path):
    adapted(model_folders["qwen3"], tmp_path / "ours", LoraConfig(rank=4))
    base = AutoModelForCausalLM.from_pretrained(model_folders["qwen3"])
    peft.PeftModel.from_pretrained(base, tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    one = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    two = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_merged_folder_loads_in_stock_transformers(
    model_folders, tmp_path: Path, architecture: str
):
    ours = adapted(model_folders[architecture], tmp_path / "adapter", LoraConfig(rank=4))
    out = merge(MergeConfig(adapter=tmp_path / "adapter", out=tmp_path / "merged"))
    stock = AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(theirs(stock), ours, **PARITY)
    torch.testing.assert_close(logits(load_model(out)[0]), ours, **PARITY)


def test_a_merged_folder_keeps_the_dtype_of_its_base(model_folders, tmp_path: Path):
    adapted(model_folders["qwen3"], tmp_path / "adapter", LoraConfig(rank=4))
    adapter, base = tmp_path / "adapter", model_folders["qwen3"]
    merge(MergeConfig(adapter=adapter, model=base, out=tmp_path / "a"))
    merge(MergeConfig(adapter=adapter, model=base, out=tmp_path / "b", dtype="bfloat16"))
    dtypes = [
        {tensor.dtype for tensor in load_file(tmp_path / name / "model.safetensors").values()}
        for name in ("a", "b")
    ]
    assert dtypes == [{torch.float32}, {torch.bfloat16}]


def test_the_fingerprint_knows_the_base_in_any_dtype():
    model = tiny_model("qwen3", 300)
    fingerprint = base_fingerprint(model)
    add_lora(model, LoraConfig(rank=4))
    stir(model)
    assert base_fingerprint(model) == fingerprint
    assert base_fingerprint(tiny_model("qwen3", 300).bfloat16()) == fingerprint
    assert base_fingerprint(tiny_model("qwen3", 300, seed=1)) != fingerprint


def test_an_adapter_of_another_base_is_refused(model_folders, tmp_path: Path):
    adapted(model_folders["qwen3"], tmp_path / "adapter", LoraConfig(rank=4))
    other = tiny_model("qwen3", 300, seed=5)
    with pytest.raises(ModelError, match=r"was trained on another base model \(.*qwen3.*load the"):
        load_adapter(other, tmp_path / "adapter")
    assert not lora_layers(other)


def without_fingerprint(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file(load_file(path), path, metadata={"format": "pt"})


def test_without_a_fingerprint_names_and_shapes_are_checked(model_folders, tmp_path: Path):
    adapted(model_folders["qwen3"], tmp_path / "adapter", LoraConfig(rank=4))
    without_fingerprint(tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"has no linear layer 'model\.layers\.0\.mlp\.down_proj'"):
        load_adapter(tiny_model("gpt2", 300), tmp_path / "adapter")
    smaller, _ = load_model(model_folders["llama"])
    mlp = smaller.get_submodule("model.layers.0.mlp")
    mlp.up_proj = torch.nn.Linear(32, 40, bias=False)
    with pytest.raises(ModelError, match=r"mlp.up_proj.lora_B is \(48, 4\), this model needs \(40"):
        load_adapter(smaller, tmp_path / "adapter")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3'; only LORA is read"),
        ({"use_dora": True}, "use_dora=True, which is not supported; merge it with PEFT"),
        ({"bias": "all"}, "bias='all', which is not supported"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern=.*not supported"),
        ({"rank_pattern": {"q_proj": 2}}, "q_proj has rank 4, adapter_config.json says 2"),
        ({"rank_pattern": {"(q|k)_proj": 4}}, "rank_pattern=.*regular expressions are not read"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa', which is not supported"),
        ({"r": 8}, r"down_proj has rank 4, adapter_config.json says 8"),
    ],
)
def test_other_kinds_of_adapter_are_refused(model_folders, tmp_path: Path, changes, message):
    adapted(model_folders["qwen3"], tmp_path / "adapter", LoraConfig(rank=4))
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    model, _ = load_model(model_folders["qwen3"])
    with pytest.raises(ModelError, match=message):
        load_adapter(model, tmp_path / "adapter")


def test_damaged_and_missing_files(model_folders, tmp_path: Path):
    model, _ = load_model(model_folders["qwen3"])
    with pytest.raises(ModelError, match=r"is not an adapter folder \(no adapter_config.json\)"):
        load_adapter(model, tmp_path)
    adapted(model_folders["qwen3"], tmp_path / "adapter", LoraConfig(rank=4))
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"cannot read .*adapter_model.safetensors"):
        load_adapter(model, tmp_path / "adapter")
    with pytest.raises(ModelError, match="names 'nowhere' as its base model, which is no folder"):
        path = tmp_path / "adapter" / "adapter_config.json"
        fields = json.loads(path.read_text()) | {"base_model_name_or_path": "nowhere"}
        path.write_text(json.dumps(fields))
        merge(MergeConfig(adapter=tmp_path / "adapter", out=tmp_path / "out"))
