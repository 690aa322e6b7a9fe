"""Model folders: round trips, foreign files, and every way a folder can be wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmlab.errors import ModelError, OutputError
from llmlab.model import build_model, load_config, load_model, load_weights, save_model
from tests.tiny import tiny_model, tiny_model_folder, tiny_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_model_folder(tmp_path)


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["qwen3", "llama", "qwen2", "gpt2"])
def test_round_trip(architecture: str, tied: bool, tmp_path: Path):
    tokenizer = tiny_tokenizer()
    model = tiny_model(architecture, tie_word_embeddings=tied)
    save_model(model, tokenizer, tmp_path / "model")
    loaded, loaded_tokenizer = load_model(tmp_path / "model")
    assert loaded_tokenizer.fingerprint == tokenizer.fingerprint
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)
    input_ids = torch.randint(0, 300, (1, 20))
    assert torch.equal(loaded(input_ids), model(input_ids))
    assert set(loaded.config.eos_token_ids) == tokenizer.stop_token_ids
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_several_files_with_an_index(tmp_path: Path):
    model = tiny_model()
    save_model(model, tiny_tokenizer(), tmp_path / "model", max_shard_bytes=50_000)
    files = sorted(path.name for path in (tmp_path / "model").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * model.config.num_parameters
    loaded, _ = load_model(tmp_path / "model")
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)


def test_the_weights_are_as_readable_as_the_config(folder: Path):
    modes = {(folder / name).stat().st_mode for name in ("config.json", "model.safetensors")}
    assert len(modes) == 1


def test_dtypes_in_memory_and_on_disk(tmp_path: Path):
    model = tiny_model()
    save_model(model, tiny_tokenizer(), tmp_path / "model", dtype="bfloat16")
    assert json.loads((tmp_path / "model/config.json").read_text())["torch_dtype"] == "bfloat16"
    stored = load_file(tmp_path / "model/model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.bfloat16}
    wide, _ = load_model(tmp_path / "model")
    narrow, _ = load_model(tmp_path / "model", dtype="bfloat16")
    for name, weight in stored.items():
        assert torch.equal(wide.state_dict()[name], weight.float())
        assert torch.equal(narrow.state_dict()[name], weight)


def test_weights_into_a_model_that_exists(folder: Path):
    model = build_model(load_config(folder)).to(torch.bfloat16)
    place = model.head_weight().data_ptr()
    load_weights(model, folder)
    assert model.head_weight().data_ptr() == place
    expected = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(model.head_weight(), expected.bfloat16())


def test_openais_own_names_and_masks(tmp_path: Path):
    folder = tiny_model_folder(tmp_path, "gpt2")
    expected, _ = load_model(folder)

    def as_openai(weights: dict[str, torch.Tensor]) -> None:
        for name in list(weights):
            weights[name.removeprefix("transformer.")] = weights.pop(name)
        weights["h.0.attn.bias"] = torch.ones(1, 1, 8, 8)

    edit_weights(folder, as_openai)
    model, _ = load_model(folder)
    input_ids = torch.randint(0, 300, (1, 9))
    assert torch.equal(model(input_ids), expected(input_ids))


def test_a_tied_head_that_was_written_all_the_same(folder: Path):
    def copy_head(weights: dict[str, torch.Tensor]) -> None:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()

    edit_weights(folder, copy_head)
    load_model(folder)
    edit_weights(folder, lambda weights: weights["lm_head.weight"].add_(1))
    with pytest.raises(ModelError, match=r"lm_head\.weight that differs.*set it to false"):
        load_model(folder)


def test_tensors_that_are_missing_unknown_or_of_another_shape(folder: Path):
    edit_weights(folder, lambda weights: weights.pop("model.norm.weight"))
    with pytest.raises(ModelError, match=r"lacks model\.norm\.weight; check"):
        load_model(folder)
    edit_weights(folder, lambda weights: weights.update({"model.norm.weight": torch.ones(7)}))
    with pytest.raises(ModelError, match=r"model\.norm\.weight.*\(7,\).*\(48,\)"):
        load_model(folder)
    edit_weights(folder, lambda weights: weights.update({"extra": torch.ones(7)}))
    with pytest.raises(ModelError, match="also has extra"):
        load_model(folder)


def test_fewer_layers_in_the_config_than_in_the_file(folder: Path):
    edit_json(folder / "config.json", num_hidden_layers=2)
    with pytest.raises(ModelError, match=r"also has model\.layers\.2.*and \d+ more; check"):
        load_model(folder)


def test_a_file_cut_short(folder: Path):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"is not a whole safetensors file.*copy it again"):
        load_model(folder)


def test_a_typo_in_the_config(folder: Path):
    edit_json(folder / "config.json", rms_norm_epps=1e-6)
    with pytest.raises(ModelError, match=r"config\.json: .*did you mean 'rms_norm_eps'"):
        load_model(folder)


def test_a_config_that_is_no_json(folder: Path):
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json is not JSON"):
        load_model(folder)


def test_folders_that_are_no_models(tmp_path: Path):
    with pytest.raises(ModelError, match=r"no model folder .*nowhere; pass"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"has no config\.json, so it is no model folder"):
        load_model(tmp_path)
    tiny_tokenizer().save(tmp_path / "tokenizer")
    with pytest.raises(ModelError, match="is a tokenizer folder"):
        load_model(tmp_path / "tokenizer")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="is an adapter; run `llmlab merge`"):
        load_model(tmp_path)


def test_weights_in_another_format(folder: Path):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(
        ModelError, match=r"only pytorch_model\.bin; it is a pickle.*safe_serialization=True"
    ):
        load_model(folder)


def test_a_tokenizer_too_large_for_the_model(tmp_path: Path):
    model = tiny_model(vocab_size=100)
    with pytest.raises(ModelError, match=r"tokens, the model only vocab_size=100"):
        save_model(model, tiny_tokenizer(), tmp_path / "model")


def test_dtype_with_a_typo(folder: Path):
    with pytest.raises(ModelError, match=r"dtype='bfloat61'.*did you mean 'bfloat16'"):
        load_model(folder, dtype="bfloat61")


def test_an_existing_folder_is_kept(folder: Path):
    with pytest.raises(OutputError, match="already exists"):
        save_model(tiny_model(), tiny_tokenizer(), folder)
    save_model(tiny_model(seed=1), tiny_tokenizer(), folder, overwrite=True)


def test_a_model_with_other_parameters_is_not_saved(tmp_path: Path):
    model = tiny_model()
    model.register_parameter("lora_A", torch.nn.Parameter(torch.ones(1)))
    with pytest.raises(ModelError, match="for example lora_A; merge adapters first"):
        save_model(model, tiny_tokenizer(), tmp_path / "model")
    assert not (tmp_path / "model").exists()
