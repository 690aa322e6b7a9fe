"""What a run reads: several sources, text, packing, masks."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmlab.cli.main import main
from llmlab.data import PackConfig, Shards, pack
from llmlab.errors import ConfigError, DataError
from llmlab.pretrain import PretrainConfig, PretrainResult, pretrain
from llmlab.pretrain import corpus as corpus_module
from llmlab.pretrain.corpus import Corpus
from llmlab.track import read_metrics, silent
from tests.llmlab.pretrain.conftest import CONTEXT


@pytest.fixture
def prose(shards: Path, tmp_path: Path) -> Path:
    """A second source from the tokenizer of the first."""
    folder = tmp_path / "prose"
    folder.mkdir()
    for n in range(150):
        (folder / f"{n}.txt").write_text(f"Letter {n}. " + "It rained, and we stayed in. " * 20)
    pack(
        PackConfig(sources=(str(folder),), tokenizer=shards / "tokenizer", out=tmp_path / "letters")
    )
    return tmp_path / "letters"


def text_config(config: PretrainConfig, shards: Path, source: Path) -> PretrainConfig:
    return dataclasses.replace(config, data=(str(source),), tokenizer=shards / "tokenizer")


class Killed(Exception):
    pass


def killed_and_resumed(config: PretrainConfig, step: int) -> PretrainResult:
    def kill(model, tokenizer, at):
        if at == step:
            raise Killed
        return {}

    cut = dataclasses.replace(config, out=config.out.with_name("cut"))
    with pytest.raises(Killed):
        pretrain(cut, on_eval=kill)
    return pretrain(dataclasses.replace(cut, resume=True))


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def same_weights(one: Path, two: Path) -> bool:
    first, second = weights_of(one), weights_of(two)
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_sources_mix_by_weight_and_are_validated_apart(config, shards, prose):
    mixed = dataclasses.replace(config, data=(str(shards), str(prose)), weights=(3, 1))
    notes: list = []
    result = pretrain(mixed, on_progress=notes.append)
    assert any(r.get("note") == "windows from shards: 75.0%, letters: 25.0%" for r in notes)
    rows = [r for r in read_metrics(result.out / "metrics.jsonl") if "val_loss" in r]
    for row in rows:
        mean = 0.75 * row["val_loss/shards"] + 0.25 * row["val_loss/letters"]
        assert row["val_loss"] == pytest.approx(mean)
        assert 0 < row["epoch/shards"] < row["epoch/letters"]
        assert row["bits_per_byte/letters"] > 0
    assert result.val_loss == rows[-1]["val_loss"]
    assert same_weights(result.out, killed_and_resumed(mixed, step=10).out)


def test_held_out_text_of_one_source_in_another_is_told(config, shards, prose, tmp_path):
    """Packed apart, so that packing cannot see it."""
    (tmp_path / "copies").mkdir()
    for n in range(40):
        text = f"Letter {n}. " + "It rained, and we stayed in. " * 20
        (tmp_path / "copies" / f"copy-{n}.txt").write_text("As they wrote:\n" + text)
    pack(
        PackConfig(
            sources=(str(tmp_path / "copies"),),
            tokenizer=shards / "tokenizer",
            out=tmp_path / "held-out",
            val_fraction=0.5,
        )
    )
    notes = []
    sources = dataclasses.replace(config, data=(str(prose), str(tmp_path / "held-out")))
    with Corpus(sources, notes.append):
        pass
    found = [row["note"] for row in notes if "held-out text of held-out in letters" in row["note"]]
    assert len(found) == 1
    assert "warning: " in found[0]
    notes.clear()
    with Corpus(dataclasses.replace(config, data=(str(prose), str(shards))), notes.append):
        pass
    assert not notes


@pytest.mark.parametrize("mask", [False, True])
def test_best_fit_packing_and_masks_train_and_say_what_they_do(config, mask):
    packed = dataclasses.replace(config, packing="best-fit", document_mask=mask)
    notes: list = []
    result = pretrain(packed, on_progress=notes.append)
    assert result.status == "finished"
    (note,) = [r["note"] for r in notes if "padding" in r.get("note", "")]
    assert "% of the documents are longer than 32 tokens and cut" in note


def test_a_small_text_is_packed_first(config, shards, corpus):
    result = pretrain(text_config(config, shards, corpus))
    packed = Shards(result.out / "shards" / corpus.name)
    assert packed.meta["held_out"]
    assert not (packed.folder / "growing.json").exists()
    assert result.val_tokens == len(packed.split("val"))


def test_text_is_tokenized_while_training_and_resumes_exactly(
    config, shards, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(corpus_module, "BLOCK_TOKENS", 2048)
    folder = tmp_path / "texts"
    folder.mkdir()
    for n in range(400):
        (folder / f"{n:03d}.py").write_text(f"def f{n}(x):\n    return x + {n * n}\n\n" * 4)
    text = text_config(config, shards, folder)
    text = dataclasses.replace(text, out=tmp_path / "whole", max_steps=40)
    whole = pretrain(text)
    grown = whole.out / "shards" / "texts"
    assert (grown / "growing.json").is_file()
    again = killed_and_resumed(text, step=20)
    assert same_weights(whole.out, again.out)
    assert whole.val_loss == again.val_loss
    assert 0 < whole.val_tokens < 2048


def test_text_needs_a_tokenizer_and_names_stay_apart(config, corpus, shards, tmp_path):
    with pytest.raises(ConfigError, match=r"is no shards folder \(it has no meta.json\); pack it"):
        pretrain(dataclasses.replace(config, data=(str(corpus),)))
    with pytest.raises(ConfigError, match="no data given; name a shards folder"):
        pretrain(dataclasses.replace(config, data=()))
    text = text_config(config, shards, tmp_path / "no" / "where")
    with pytest.raises(DataError, match=r"no/where' does not exist"):
        pretrain(text)
    copy = shutil.copytree(shards, tmp_path / "copy" / "shards")
    both = dataclasses.replace(config, data=(str(shards), str(copy)))
    assert len(set(Corpus(both, silent).names)) == 2


def test_flags(shards, shape, tmp_path, prose):
    words = ["pretrain", "--data", str(shards), str(prose), "--weights", "1", "2"]
    words += ["--out", str(tmp_path / "run"), "--model-config", str(shape), "--max-steps", "1"]
    words += ["--context-len", str(CONTEXT), "--batch-tokens", str(4 * CONTEXT), "--compile", "off"]
    words += ["--packing", "best-fit", "--document-mask", "--no-tokenize-ahead", "--prompts"]
    assert main(words) == 0
