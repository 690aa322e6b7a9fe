import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llmlab.cli.main import main
from llmlab.model import load_config
from tests.llmlab.pretrain.conftest import CONTEXT

ROOT = Path(__file__).parents[3]


@pytest.fixture
def flags(shards, shape, tmp_path) -> list[str]:
    return [
        *("--data", str(shards), "--out", str(tmp_path / "run"), "--model-config", str(shape)),
        *("--context-len", str(CONTEXT), "--batch-tokens", str(4 * CONTEXT), "--dtype", "float32"),
        *("--compile", "off", "--sample-tokens", "4", "--eval-every", "0"),
    ]


def test_the_verb_trains_and_names_the_model_last(flags, tmp_path, capsys):
    assert main(["pretrain", *flags, "--max-steps", "3"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert "3 steps, 384 tokens" in lines[0]
    assert "bits per byte over" in lines[1]
    assert lines[-1] == str(tmp_path / "run" / "model")
    assert load_config(Path(lines[-1])).vocab_size == 320
    assert "pretrain  step 1/3  loss 5." in captured.err

    assert main(["pretrain", *flags, "--max-steps", "4", "--resume", "--json"]) == 0
    fields = json.loads(capsys.readouterr().out)
    assert fields["steps"] == 4
    assert fields["model"] == lines[-1]


def test_a_learning_rate_is_found_and_shown(flags, tmp_path, capsys):
    assert main(["pretrain", *flags, "--find-lr"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "loss while the rate of muon rises"
    assert lines[-1] == str(tmp_path / "run" / "lr.html")
    found = json.loads((tmp_path / "run" / "lr.json").read_text())
    assert lines[-2].startswith(f"suggested: --learning-rate {found['suggested']:g} (a run takes ")
    assert len(found["rates"]) == len(found["losses"])
    page = Path(lines[-1]).read_text()
    assert "<svg" in page
    assert f"Suggested: {found['suggested']:g}" in page
    assert main(["pretrain", *flags, "--find-lr"]) == 1  # not over what is there


def test_errors_are_one_line(flags, capsys):
    assert main(["pretrain", *flags]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("llmlab: error: no budget")


def test_ctrl_c_saves_and_says_how_to_go_on(flags, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "llmlab", "pretrain", *flags, "--max-steps", "1000000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "  step 1/" in line:
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert out == ""
    last = err.splitlines()[-1]
    assert last.startswith("llmlab: interrupted at step ")
    steps = int(last.split(";")[0].split()[-1])
    assert (tmp_path / "run" / f"checkpoint-{steps}").is_dir()

    command = shlex.split(last.split("`")[1])
    assert command[0] == "llmlab"
    assert main([*command[1:], "--max-steps", str(steps + 1)]) == 0
