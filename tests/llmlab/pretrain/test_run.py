import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llmlab.config import read_toml
from llmlab.data import PackConfig, Shards, pack
from llmlab.errors import ConfigError, DataError, ModelError, OutputError
from llmlab.model import build_model, load_model
from llmlab.pretrain import PretrainConfig, pretrain
from llmlab.pretrain.run import model_config
from llmlab.pretrain.validation import Validator
from llmlab.tokenizers import Tokenizer
from llmlab.track import read_metrics
from tests.llmlab.pretrain.conftest import CONTEXT


def nats_by_transformers(folder, ids: torch.Tensor, before: int) -> float:
    """Sum of the losses of `ids`, in windows of CONTEXT that follow one another."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = torch.cat([torch.tensor([before]), ids[:-1]])
    nats = 0.0
    with torch.inference_mode():
        for window, targets in zip(inputs.split(CONTEXT), ids.split(CONTEXT), strict=True):
            logits = model(window[None]).logits[0]
            nats += float(F.cross_entropy(logits, targets, reduction="sum"))
    return nats


def test_a_run_leaves_everything_and_transformers_agrees(config, shards):
    rows, asked = [], []

    def on_eval(model, tokenizer, step):
        asked.append((step, tokenizer.vocab_size, model.training))
        return {"accuracy": 0.25}

    result = pretrain(config, on_progress=rows.append, on_eval=on_eval)
    assert (result.status, result.steps, result.tokens) == ("finished", 10, 10 * 4 * CONTEXT)
    assert result.model == config.out / "model"
    assert asked == [(5, 320, False), (10, 320, False)]

    found = sorted(path.name for path in config.out.iterdir())
    assert found == ["checkpoint-10", "checkpoint-5", "config.toml", "journal.jsonl",
                     "metrics.jsonl", "model", "report.html", "report.md",
                     "samples.jsonl"]  # fmt: skip
    metrics = read_metrics(config.out / "metrics.jsonl")
    losses = [row["loss"] for row in metrics if "loss" in row]
    assert losses[0] == pytest.approx(math.log(320), rel=0.02)
    assert losses[-1] < losses[0]
    evaluations = [row for row in metrics if "val_loss" in row]
    assert [row["step"] for row in evaluations] == [5, 10, 10]
    assert evaluations[0]["accuracy"] == 0.25
    assert evaluations[-1]["final"] is True
    samples = read_metrics(config.out / "samples.jsonl")
    assert [row["step"] for row in samples] == [5] * 4 + [10] * 4
    assert samples[1]["prompt"] == "class "

    opened = Shards(shards)
    ids = torch.from_numpy(opened.split("val")[:].astype("int64"))
    assert result.val_tokens == len(ids)
    nats = nats_by_transformers(result.model, ids, opened.eos_token_id)
    # two float32 implementations, summed over all tokens
    assert result.val_loss == pytest.approx(nats / len(ids), rel=1e-5)
    bits = nats / math.log(2) / opened.num_bytes("val")
    assert result.bits_per_byte == pytest.approx(bits, rel=1e-5)

    notes = " ".join(row["note"] for row in rows if "note" in row)
    for words in ("parameters", "MFLOP per token", "bytes of KV cache", "memory: up to about",
                  "ln 320 = 5.768", "computing in float32"):  # fmt: skip
        assert words in notes


def test_validation_scores_exactly_the_first_tokens(config, shards):
    tokenizer = Tokenizer.load(shards / "tokenizer")
    torch.manual_seed(0)
    model = build_model(model_config(config, tokenizer)).eval()
    opened = Shards(shards)
    validator = Validator([("a", opened)], [1.0], tokenizer, batch_size=3, context_len=CONTEXT)
    ids = torch.from_numpy(opened.split("val")[:].astype("int64"))
    for count in (1, CONTEXT, 3 * CONTEXT, 3 * CONTEXT + 7, 777):
        inputs = torch.cat([torch.tensor([opened.eos_token_id]), ids[: count - 1]])
        nats = 0.0
        with torch.no_grad():
            found = validator.measure(model, count)
            for window, targets in zip(
                inputs.split(CONTEXT), ids[:count].split(CONTEXT), strict=True
            ):
                nats += float(model.loss_sum(window[None], targets[None])[0])
        assert found.tokens == count
        assert found.val_loss == pytest.approx(nats / count, rel=1e-5)
        text = b"".join(
            tokenizer.token_bytes(i) for i in ids[:count].tolist() if i != tokenizer.eos_token_id
        )
        assert found.num_bytes == len(text)
        assert found.bits_per_byte == pytest.approx(nats / len(text) / math.log(2), rel=1e-5)
    with torch.no_grad():
        whole = validator.measure(model, 10**9)
    assert whole.num_bytes == opened.num_bytes("val")


def test_a_resumed_run_writes_the_same_model_and_rows(config, tmp_path):
    class Kill(Exception):
        pass

    def kill(model, tokenizer, step):
        if step == 8:
            raise Kill
        return {}

    whole = pretrain(dataclasses.replace(config, out=tmp_path / "whole", eval_every=2))
    cut = dataclasses.replace(config, out=tmp_path / "cut", eval_every=2, sample_every=7)
    with pytest.raises(Kill):
        pretrain(cut, on_eval=kill)
    assert not (cut.out / "model").exists()
    again = pretrain(dataclasses.replace(cut, resume=True, sample_every=5))
    one, two = (load_file(result.out / "model" / "model.safetensors") for result in (whole, again))
    assert one.keys() == two.keys()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    timeless = [
        [
            {k: v for k, v in row.items() if k not in ("tok_per_s", "mfu", "elapsed_s")}
            for row in rows
        ]
        for rows in (read_metrics(r.out / "metrics.jsonl") for r in (whole, again))
    ]
    assert timeless[0] == timeless[1]
    assert [row["step"] for row in read_metrics(again.out / "samples.jsonl")] == [10] * 4

    finished = pretrain(dataclasses.replace(cut, resume=True))
    assert finished.val_loss == again.val_loss
    rows = read_metrics(again.out / "metrics.jsonl")
    assert [row for row in rows if "loss" in row or "val_loss" in row] == rows
    assert sum("final" in row for row in rows) == 1


@pytest.mark.parametrize(
    "arch",
    ["qwen3", "gpt2", *(pytest.param(a, marks=pytest.mark.slow) for a in ("llama", "qwen2"))],
)
def test_every_architecture_trains_and_loads(config, arch):
    small = dataclasses.replace(
        config, model_config=None, preset="char", arch=arch, max_steps=2, prompts=()
    )
    result = pretrain(small)
    model, tokenizer = load_model(result.out / "model")
    assert model.config.max_position_embeddings == CONTEXT
    assert model.config.vocab_size == tokenizer.vocab_size == 320
    assert tokenizer.eos_token_id in model.config.eos_token_ids
    assert not (config.out / "samples.jsonl").exists()


def test_data_without_a_validation_split(config, corpus, shards, tmp_path):
    pack(
        PackConfig(
            sources=(str(corpus),),
            tokenizer=shards / "tokenizer",
            out=tmp_path / "all",
            val_fraction=0.0,
        )
    )
    notes = []
    result = pretrain(
        dataclasses.replace(config, data=(str(tmp_path / "all"),)), on_progress=notes.append
    )
    assert (result.val_loss, result.bits_per_byte, result.val_tokens) == (None, None, 0)
    assert any("holds out no documents" in row.get("note", "") for row in notes)


def test_taken_and_missing_folders(config):
    with pytest.raises(ModelError, match=r"no usable checkpoint-N to resume from; start without"):
        pretrain(dataclasses.replace(config, resume=True))
    config.out.mkdir()
    (config.out / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="already exists; choose another --out or add"):
        pretrain(config)
    pretrain(dataclasses.replace(config, overwrite=True))
    first = (config.out / "metrics.jsonl").read_text()
    again = dataclasses.replace(config, overwrite=True, max_steps=3, checkpoint_every=0)
    pretrain(again)
    assert (config.out / "notes.txt").read_text() == "mine"
    assert len((config.out / "metrics.jsonl").read_text()) < len(first)
    assert [p.name for p in config.out.glob("checkpoint-*")] == ["checkpoint-3"]
    stored = read_toml(config.out / "config.toml", PretrainConfig)
    assert stored["overwrite"] is False  # so that --config config.toml --resume works
    assert stored["max_steps"] == 3


def test_things_that_do_not_go_together(config, shape, tmp_path):
    other = Tokenizer.train(["another text, other merges " * 20], vocab_size=300)
    other.save(tmp_path / "other")
    with pytest.raises(DataError, match="pack the data again"):
        pretrain(dataclasses.replace(config, tokenizer=tmp_path / "other"))
    with pytest.raises(ConfigError, match="has max_position_embeddings=32, less than the 64"):
        pretrain(dataclasses.replace(config, context_len=64))
    narrow = tmp_path / "narrow.json"
    narrow.write_text(json.dumps(json.loads(shape.read_text()) | {"vocab_size": 100}))
    with pytest.raises(ConfigError, match="has vocab_size=100, less than the 320"):
        pretrain(dataclasses.replace(config, model_config=narrow))
    with pytest.raises(ConfigError, match=r"missing\.json does not exist; pass a config\.json"):
        pretrain(dataclasses.replace(config, model_config=tmp_path / "missing.json"))
    with pytest.raises(ModelError, match="no preset 'quikstart'; did you mean 'quickstart'"):
        pretrain(dataclasses.replace(config, model_config=None, preset="quikstart"))
    assert not config.out.exists()


def test_another_seed_cannot_resume_the_run(config):
    pretrain(dataclasses.replace(config, max_steps=2))
    with pytest.raises(DataError, match="cannot resume: the saved seed is 0, this run has 1"):
        pretrain(dataclasses.replace(config, max_steps=4, seed=1, resume=True))
