import hashlib
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llmlab.errors import ModelError
from llmlab.training.checkpoint import (
    Position,
    find_latest,
    load_checkpoint,
    rewind_rows,
    save_checkpoint,
)
from llmlab.training.optimizer import build_optimizer
from llmlab.training.plan import TrainingPlan
from tests.llmlab.training.small import SmallBatches, small_model

PLAN = TrainingPlan(max_steps=10, keep_checkpoints=2)
ROOT = Path(__file__).parents[3]


def save(out: Path, step: int, model=None) -> Path:
    model = model or small_model()
    return save_checkpoint(
        out,
        model=model,
        optimizer=build_optimizer(model, PLAN),
        batches=SmallBatches().state_dict(),
        position=Position(step=step, tokens=step * 32, elapsed_s=1.5, dtype="bfloat16"),
        plan=PLAN,
    )


def test_position_and_plan_come_back(tmp_path):
    loaded = load_checkpoint(save(tmp_path, 3))
    assert loaded.position == Position(step=3, tokens=96, elapsed_s=1.5, dtype="bfloat16")
    assert loaded.batches == {"position": 0}
    assert PLAN.differences(loaded.plan) == []


def test_random_generators_come_back(tmp_path):
    model = small_model()
    folder = save(tmp_path, 1, model)
    want = torch.rand(2), random.random()
    load_checkpoint(folder).restore(model, build_optimizer(model, PLAN))
    got = torch.rand(2), random.random()
    assert torch.equal(got[0], want[0])
    assert got[1] == want[1]


def test_only_the_newest_are_kept(tmp_path):
    (tmp_path / "checkpoint-notes.txt").write_text("mine")
    for step in (5, 10, 100, 20):
        save(tmp_path, step)
    # by steps, not by time or by name
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-100",
        "checkpoint-20",
        "checkpoint-notes.txt",
    ]
    assert find_latest(tmp_path) == tmp_path / "checkpoint-100"


def test_damaged_ones_are_passed_over(tmp_path, caplog):
    good, changed = save(tmp_path, 1), save(tmp_path, 2)
    data = bytearray((changed / "state.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (changed / "state.pt").write_bytes(bytes(data))
    for step, break_it in enumerate(
        (
            lambda f: (f / "state.pt").unlink(),
            lambda f: (f / "checkpoint.json").write_text('{"position": '),
            lambda f: (f / "state.pt").write_bytes(data[:-100]),
        ),
        start=3,
    ):
        folder = tmp_path / f"checkpoint-{step}"
        shutil.copytree(good, folder)
        break_it(folder)
    (tmp_path / ".checkpoint-9.partial").mkdir()
    assert find_latest(tmp_path) == good
    assert len(caplog.records) == 4
    with pytest.raises(ModelError, match=r"not a usable checkpoint.*SHA-256.*resume from an older"):
        load_checkpoint(changed)


def test_no_checkpoint_is_none(tmp_path):
    assert find_latest(tmp_path) is None
    assert find_latest(tmp_path / "missing") is None


def test_loading_runs_no_code(tmp_path):
    folder = save(tmp_path, 1)

    class Harmful:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"parameters": Harmful()}, folder / "state.pt")
    facts = json.loads((folder / "checkpoint.json").read_text())
    facts["state_bytes"] = (folder / "state.pt").stat().st_size
    facts["state_sha256"] = hashlib.sha256((folder / "state.pt").read_bytes()).hexdigest()
    (folder / "checkpoint.json").write_text(json.dumps(facts))
    with pytest.raises(ModelError, match="holds more than tensors and plain values"):
        load_checkpoint(folder)
    assert not (tmp_path / "ran").exists()


def test_another_model_is_refused(tmp_path):
    folder = save(tmp_path, 1)
    other = small_model(tie=False)
    with pytest.raises(ModelError, match=r"parameter lm_head\.weight is None in the checkpoint"):
        load_checkpoint(folder).restore(other, build_optimizer(other, PLAN))


def test_frozen_parameters_are_not_stored(tmp_path):
    model = small_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("q_proj" in name)
    assert set(load_checkpoint(save(tmp_path, 1, model)).parameters) == {
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.self_attn.q_proj.weight",
    }


def test_rows_of_steps_to_be_made_again_are_dropped(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 4, "note": "é"}\n{"step": 5}\n{"step": 6}\n{"step": 7, "lo')
    rewind_rows(log, 5)
    assert log.read_text() == '{"step": 4, "note": "é"}\n{"step": 5}\n'
    rewind_rows(tmp_path / "missing.jsonl", 5)


FULL_DISK = """
import resource, sys
from pathlib import Path
from llmlab.errors import OutputError
from tests.llmlab.training.test_checkpoint import save

out = Path(sys.argv[1])
save(out, 1)
size = (out / "checkpoint-1" / "state.pt").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))
try:
    save(out, 2)
except OutputError as error:
    print(error)
"""


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path):
    """The process may write files of half a checkpoint's size only, as on a disk that fills up."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"cannot write {tmp_path / 'checkpoint-2'}: File too large" in done.stdout
    assert "MB free); free some space, then go on" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-1"]
    assert find_latest(tmp_path) == tmp_path / "checkpoint-1"
