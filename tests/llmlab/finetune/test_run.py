import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from llmlab.cli.main import main
from llmlab.errors import ConfigError, DataError, ModelError, OutputError
from llmlab.finetune import FinetuneConfig, finetune, load_adapter
from llmlab.model import generate, load_model
from llmlab.track import read_metrics
from tests.llmlab.finetune.test_lora import logits


@pytest.fixture
def config(model_folders, chat_file: Path, tmp_path: Path) -> FinetuneConfig:
    return FinetuneConfig(
        model=model_folders["qwen3"],
        data=chat_file,
        out=tmp_path / "run",
        num_epochs=2,
        learning_rate=1e-2,
        val_fraction=0.2,
        dtype="float32",
    )


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_loss_on_held_out_answers_falls(config: FinetuneConfig, method):
    result = finetune(dataclasses.replace(config, method=method, num_epochs=8))
    assert result.status == "finished"
    assert result.num_examples + result.num_val == 64
    assert result.base_val_loss is not None
    assert result.val_loss is not None
    assert result.val_loss < 0.5 * result.base_val_loss
    rows = [row for row in read_metrics(config.out / "metrics.jsonl") if "val_loss" in row]
    assert [(row["step"], row["val_loss"]) for row in rows] == [(result.steps, result.val_loss)]
    assert result.steps == 8 * -(-result.num_examples // 8)


def test_only_the_adapter_is_written_and_the_base_stays(config: FinetuneConfig):
    weights = (config.model / "model.safetensors").read_bytes()
    result = finetune(config)
    assert result.folder == config.out / "adapter"
    assert sorted(path.name for path in result.folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert 0 < result.trained_parameters < 0.5 * result.parameters
    assert (config.model / "model.safetensors").read_bytes() == weights
    model, _ = load_model(config.model)
    before = logits(model)
    load_adapter(model, config.out)  # the run's folder does as well
    assert (logits(model) - before).abs().max() > 0.1


def test_a_resumed_run_ends_with_the_same_numbers(config: FinetuneConfig, tmp_path: Path):
    config = dataclasses.replace(config, dropout=0.1)
    whole = finetune(config)
    every = dataclasses.replace(config, out=tmp_path / "cut", checkpoint_every=5)
    finetune(every)
    last = max(every.out.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    shutil.rmtree(last)
    resumed = finetune(dataclasses.replace(every, resume=True))
    assert resumed.steps == whole.steps
    one = (whole.folder / "adapter_model.safetensors").read_bytes()
    assert (resumed.folder / "adapter_model.safetensors").read_bytes() == one
    assert resumed.val_loss == whole.val_loss


def test_the_same_seed_gives_the_same_adapter(config: FinetuneConfig, tmp_path: Path):
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        result = finetune(dataclasses.replace(config, out=tmp_path / name, seed=seed))
        weights.append((result.folder / "adapter_model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_nothing_held_out_means_no_validation(config: FinetuneConfig):
    result = finetune(dataclasses.replace(config, val_fraction=0.0, max_steps=2))
    assert (result.num_val, result.base_val_loss, result.val_loss) == (0, None, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_epochs": 0.0}, "num_epochs=0.0 must be greater than 0"),
        ({"batch_size": 0}, "batch_size=0 must be greater than 0"),
        ({"val_fraction": 0.7}, r"val_fraction=0.7 is not in \[0, 0.5\]; try 0.05"),
        ({"rank": 0}, "rank=0 is below 1"),
        ({"max_steps": -1}, "max_steps=-1 must be greater than 0"),
        ({"resume": True, "overwrite": True}, "resume=True .* overwrite=True .*choose one"),
    ],
)
def test_unusable_settings(config: FinetuneConfig, changes: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(config, **changes)


def test_refused_before_anything_is_written(config: FinetuneConfig, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"max_len=500 is beyond the model's context of 128"):
        finetune(dataclasses.replace(config, max_len=500))
    with pytest.raises(ConfigError, match="lies inside out="):
        finetune(dataclasses.replace(config, out=config.model.parent, overwrite=True))
    with pytest.raises(DataError, match="is not a file"):
        finetune(dataclasses.replace(config, data=tmp_path / "nowhere.jsonl"))
    with pytest.raises(ModelError, match="has no usable checkpoint-N to resume from"):
        finetune(dataclasses.replace(config, resume=True))
    assert not config.out.exists()
    config.out.mkdir()
    (config.out / "note.txt").write_text("mine")
    with pytest.raises(OutputError, match="already exists"):
        finetune(config)
    finetune(dataclasses.replace(config, overwrite=True, max_steps=1))
    assert (config.out / "note.txt").read_text() == "mine"


def test_command_line_from_chats_to_a_merged_model_that_answers(
    config: FinetuneConfig, tmp_path: Path, capsys: pytest.CaptureFixture
):
    run, merged = str(tmp_path / "run"), str(tmp_path / "merged")
    words = ["finetune", "--model", str(config.model), "--data", str(config.data), "--out", run]
    flags = ["--num-epochs", "12", "--learning-rate", "1e-2", "--dtype", "float32"]
    assert main([*words, *flags]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1] == f"{run}/adapter"
    assert "held-out examples" in shown.out
    assert main([*words, *flags]) == 1
    assert "already exists" in capsys.readouterr().err
    assert main(["merge", "--adapter", f"{run}/adapter", "--out", merged, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"out": merged}
    model, tokenizer = load_model(merged)
    prompt = tokenizer.encode_chat([{"role": "user", "content": "8: say red"}])
    with torch.no_grad():
        answer = "".join(generate(model, tokenizer, prompt, max_tokens=12, temperature=0.0, seed=0))
    assert answer == "red it is"


def test_merge_without_an_adapter(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main(["merge", "--adapter", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "is not an adapter folder" in capsys.readouterr().err
