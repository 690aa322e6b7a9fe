"""`torchrun -m llmlab pretrain`: two processes write what one does; Ctrl-C and on again."""

import dataclasses
import json
import signal

import pytest
import torch
from safetensors.torch import load_file

from llmlab.pretrain import PretrainConfig, pretrain
from llmlab.track import read_metrics
from llmlab.training import load_checkpoint
from tests.llmlab.training.ranks import on_ranks
from tests.llmlab.training.test_torchrun import finished, started


def run(config: PretrainConfig) -> tuple[list[object], int]:
    """Train; return the result and how many rows this process was told."""
    rows = []
    result = pretrain(config, on_progress=rows.append, on_eval=lambda *_: {"accuracy": 0.5})
    return [result.status, result.steps, result.tokens, result.val_loss, result.model], len(rows)


@pytest.mark.parametrize("parallel", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp"])
def test_two_processes_write_what_one_does(config, tmp_path, parallel):
    config = dataclasses.replace(config, parallel=parallel, dtype="float32", compile="off")
    alone = dataclasses.replace(config, out=tmp_path / "one")
    together = dataclasses.replace(config, out=tmp_path / "two")
    one, _ = run(alone)
    (two, told), (also_two, told_nothing) = on_ranks(2, run, together)
    assert two == also_two
    assert told > 0
    assert told_nothing == 0
    assert two[:3] == one[:3]
    assert two[3] == pytest.approx(one[3], abs=1e-5)
    files = [sorted(p.name for p in out.iterdir()) for out in (alone.out, together.out)]
    assert files[0] == files[1]
    weights = [load_file(out / "model" / "model.safetensors") for out in (alone.out, together.out)]
    for name, tensor in weights[0].items():
        # float32 sums in another order; the optimizer magnifies them where gradients are near 0
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-4, rtol=1e-3)
    for name in ("metrics.jsonl", "samples.jsonl", "journal.jsonl"):
        one_rows, two_rows = (read_metrics(out / name) for out in (alone.out, together.out))
        assert len(one_rows) == len(two_rows), name
    evaluations = [row for row in read_metrics(together.out / "metrics.jsonl") if "accuracy" in row]
    assert [row["step"] for row in evaluations] == [5, 10]


@pytest.mark.slow
def test_ctrl_c_at_torchrun_saves_and_the_same_command_goes_on(tmp_path, shards, shape):
    out = tmp_path / "run"
    flags = {
        "data": shards,
        "out": out,
        "model-config": shape,
        "context-len": 32,
        "batch-tokens": 128,
        "learning-rate": 1e-3,
        "eval-every": 2,
        "final-eval-tokens": 1000,
        "sample-tokens": 4,
        "checkpoint-every": 1000,
        "parallel": "fsdp",
        "compile": "off",
    }
    words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    command = ["--standalone", "--nproc-per-node=2", "--max-restarts=1", "-m", "llmlab"]
    command += ["pretrain", *words, "--resume"]
    process = started(*command, "--max-steps", 100_000)
    assert process.stderr is not None
    said = []
    for line in process.stderr:  # until a first validation
        said.append(line)
        if "val_loss" in line:
            break
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=600)
    assert "llmlab: interrupted at step" in rest
    steps = [row["step"] for row in read_metrics(out / "metrics.jsonl") if "loss" in row]
    position = load_checkpoint(out / f"checkpoint-{steps[-1]}").position
    assert position.tokens == 128 * steps[-1]
    assert not (out / "model").exists()

    said = finished(started(*command, "--max-steps", steps[-1] + 2, "--json"))
    result = json.loads(said[: said.index("\n")])  # one process prints
    assert (result["status"], result["steps"]) == ("finished", steps[-1] + 2)
    rows = read_metrics(out / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, steps[-1] + 3))
    assert (out / "model" / "model.safetensors").is_file()
