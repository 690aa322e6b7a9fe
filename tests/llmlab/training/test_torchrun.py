"""Runs under the real torchrun: a rank that dies, two nodes."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llmlab.track import read_metrics
from llmlab.training import load_checkpoint
from tests.llmlab.training.under_torchrun import STEPS

ROOT = Path(__file__).parents[3]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
NOBODY = -1

pytestmark = pytest.mark.slow


def started(*arguments: object) -> subprocess.Popen[str]:
    words = [*TORCHRUN, *map(str, arguments)]
    return subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-4000:]
    return output + errors


def losses(out: Path) -> list[tuple[int, float]]:
    rows = read_metrics(out / "metrics.jsonl")
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


@pytest.mark.parametrize(("parallel", "victim"), [("ddp", 0), ("fsdp", 1)])
def test_the_others_start_again_when_a_rank_dies(tmp_path, parallel, victim):
    for name, who, restarts in (("calm", NOBODY, 0), ("hit", victim, 1)):
        said = finished(
            started(
                "--standalone",
                "--nproc-per-node=2",
                f"--max-restarts={restarts}",
                "-m",
                "tests.llmlab.training.under_torchrun",
                tmp_path / name,
                parallel,
                who,
            )
        )
    assert "SIGKILL" in said or "-9" in said
    calm, hit = losses(tmp_path / "calm"), losses(tmp_path / "hit")
    assert calm == hit
    assert [step for step, _ in hit] == list(range(1, STEPS + 1))
    tensors = [
        load_checkpoint(tmp_path / name / f"checkpoint-{STEPS}").tensors()
        for name in ("calm", "hit")
    ]
    for name, tensor in tensors[0].items():
        if not name.endswith(".python"):
            assert torch.equal(tensor, tensors[1][name]), name


def test_two_nodes_train_as_one_does(tmp_path):
    """Two agents, as on two hosts; both see one folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = [
        started(
            "--nnodes=2",
            "--nproc-per-node=1",
            f"--node-rank={node}",
            "--rdzv-backend=c10d",
            "--rdzv-id=two-nodes",
            f"--rdzv-endpoint=127.0.0.1:{port}",
            "--local-addr=127.0.0.1",
            "-m",
            "tests.llmlab.training.under_torchrun",
            tmp_path / "two",
            "fsdp",
            NOBODY,
        )
        for node in (0, 1)
    ]
    for node in nodes:
        finished(node)
    finished(
        started(
            "--standalone",
            "--nproc-per-node=2",
            "-m",
            "tests.llmlab.training.under_torchrun",
            tmp_path / "one",
            "fsdp",
            NOBODY,
        )
    )
    assert losses(tmp_path / "two") == losses(tmp_path / "one")
