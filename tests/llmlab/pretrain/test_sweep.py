"""Sweeps end to end: kept, resumed and failed runs, the table, the fitted ladder."""

import dataclasses
import json
import math

import pytest

from llmlab.cli.main import main
from llmlab.errors import DataError, OutputError
from llmlab.pretrain import pretrain
from llmlab.pretrain.report.record import RunRecord
from llmlab.pretrain.scaling_law import ScalingLaw
from llmlab.pretrain.sweep.config import SweepConfig
from llmlab.pretrain.sweep.run import sweep
from llmlab.pretrain.sweep.scaling import Ladder
from llmlab.pretrain.sweep.trials import make_trials

TRUTH = ScalingLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)


@pytest.fixture
def shared(shards, shape) -> tuple[str, ...]:
    return (
        f"data={shards}", f"model_config={shape}", "max_steps=3", "context_len=32",
        "batch_tokens=64", "warmup_steps=1", "eval_every=0", "eval_tokens=500",
        "final_eval_tokens=500", "sample_every=0", "sample_tokens=2", "compile=off",
        "dtype=float32",
    )  # fmt: skip


def test_a_sweep_trains_keeps_goes_on_and_grows(shared, tmp_path, capsys):
    words = ["pretrain", "sweep", "--out", str(tmp_path / "sweep"), "--set", *shared, "--json"]
    assert main([*words, "--grid", "learning_rate=1e-2,1e-4", "seed=0,1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["status"] == "finished"
    losses = [row["val_loss"] for row in found["runs"]]
    assert len(losses) == 4
    assert losses == sorted(losses)
    assert "over seeds" in found["text"]
    assert {row["learning_rate"] for row in found["runs"]} == {1e-2, 1e-4}
    stored = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert stored["runs"] == found["runs"]
    page = (tmp_path / "sweep" / "report.html").read_text()
    assert "Final held-out loss over learning_rate" in page
    assert "| learning\\_rate=0.01" in (tmp_path / "sweep" / "report.md").read_text()

    models = sorted((tmp_path / "sweep").glob("runs/*/model/model.safetensors"))
    before = [path.stat().st_mtime_ns for path in models]
    assert main([*words, "--grid", "learning_rate=1e-2,1e-4,1e-3", "seed=0,1"]) == 0
    shown = capsys.readouterr()
    assert len(json.loads(shown.out)["runs"]) == 6
    assert shown.err.count(": kept") == 4
    assert [path.stat().st_mtime_ns for path in models] == before


def test_a_killed_run_goes_on_from_its_checkpoint(shared, tmp_path):
    class Kill(Exception):
        pass

    def kill(model, tokenizer, step):
        if step == 2:
            raise Kill
        return {}

    config = SweepConfig(out=tmp_path / "sweep", grid=("seed=0,1",), set=shared)
    trial = make_trials(config)[1]
    with pytest.raises(Kill):
        pretrain(
            dataclasses.replace(trial.config, checkpoint_every=1, eval_every=1), on_eval=kill
        )  # fmt: skip
    with pytest.raises(OutputError, match=r"seed=1 was trained with other settings \(.*eval_every"):
        sweep(config)
    notes = []
    again = dataclasses.replace(config, set=(*shared, "checkpoint_every=1", "eval_every=1"))
    result = sweep(again, on_progress=notes.append)
    said = [row["note"] for row in notes if "note" in row]
    assert any("resuming from" in note and "seed=1" in note for note in said)
    assert {row["steps"] for row in result.runs} == {3}


def test_a_run_that_diverges_does_not_end_the_sweep(shared, tmp_path):
    config = SweepConfig(
        out=tmp_path / "sweep", set=(*shared, "grad_clip=0"), grid=("learning_rate=1e35,1e-3",)
    )
    notes = []
    result = sweep(config, on_progress=notes.append)
    assert {row["status"] for row in result.runs} == {"finished", "failed"}
    assert result.runs[0]["learning_rate"] == 1e-3
    assert any(row.get("note", "").startswith("failed: step ") for row in notes)
    again = []
    sweep(config, on_progress=again.append)
    assert sum(": kept" in row.get("note", "") for row in again) == 2


def test_a_fit_of_too_few_runs_is_refused_when_all_are_done(shared, tmp_path):
    config = SweepConfig(out=tmp_path / "sweep", set=shared, grid=("seed=0",), fit=True)
    with pytest.raises(DataError, match="1 finished runs of 1 sizes and 1 numbers of tokens"):
        sweep(config)
    assert (tmp_path / "sweep" / "report.html").exists()


def record(tmp_path, size: int, tokens: int) -> RunRecord:
    scatter = 1 + 1e-3 * math.sin(size + tokens)
    return RunRecord(
        folder=tmp_path / f"{size}-{tokens}",
        settings={"max_tokens": tokens},
        steps=[{"step": 1, "loss": 5.0, "tokens": tokens}],
        validations=[{"step": 1, "val_loss": TRUTH.loss(size, tokens) * scatter, "final": True}],
        samples=[],
        starts=[{"num_parameters": size + 10**6, "num_non_embedding": size}],
        ended={"status": "finished"},
        notes=[],
        checkpoints=[1],
        has_model=True,
    )


def test_a_ladder_predicts_the_run_it_has_not_seen(tmp_path):
    runs = [
        record(tmp_path, n * 10**6, d * 10**7) for n in (1, 2, 4, 8) for d in (2, 8, 32)
    ]  # fmt: skip
    larger = record(tmp_path, 32_000_000, 10**10)
    ladder = Ladder(runs, [larger], size="non_embedding", seed=0, resamples=20)
    found = ladder.as_json()
    assert found["runs"] == 12
    assert found["constants"]["alpha"] == pytest.approx(TRUTH.alpha, rel=0.05)
    (held_out,) = found["held_out"]
    assert held_out["predicted"] == pytest.approx(held_out["measured"], rel=2e-2)
    titles = [table.title for table in ladder.tables()]
    assert "a larger run, predicted and measured" in titles
    assert [chart.svg.count("<circle") for chart in ladder.charts()] == [13, 13]
    total = Ladder(runs, [larger], size="total", seed=0, resamples=2)
    assert total.as_json()["constants"]["alpha"] > 1.2 * TRUTH.alpha
