import hashlib
import json
import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llmlab.errors import ModelError
from llmlab.training.checkpoint import (
    CheckpointWriter,
    Position,
    best_val_loss,
    find_latest,
    load_checkpoint,
    rewind_rows,
)
from llmlab.training.optimizer import build_optimizer
from llmlab.training.plan import TrainingPlan
from tests.llmlab.training.small import SmallBatches, small_model

PLAN = TrainingPlan(max_steps=10, keep_checkpoints=2)
ROOT = Path(__file__).parents[3]


def save(out: Path, step: int, model=None, *, val_loss: float | None = None) -> Path:
    model = model or small_model()
    with CheckpointWriter(out, keep=PLAN.keep_checkpoints) as writer:
        return writer.save(
            model=model,
            optimizer=build_optimizer(model, PLAN),
            batches=SmallBatches().state_dict(),
            position=Position(
                step=step, tokens=step * 32, elapsed_s=1.5, dtype="bfloat16", val_loss=val_loss
            ),
            plan=PLAN,
        )


def tensors_of(checkpoint: Path) -> Path:
    """The file of the one process."""
    return next(checkpoint.glob("*.safetensors"))


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
    data = bytearray(tensors_of(changed).read_bytes())
    data[-5] ^= 1
    tensors_of(changed).write_bytes(bytes(data))
    for step, break_it in enumerate(
        (
            lambda f: tensors_of(f).unlink(),
            lambda f: (f / "checkpoint.json").write_text('{"position": '),
            lambda f: tensors_of(f).write_bytes(data[:-100]),
        ),
        start=3,
    ):
        folder = tmp_path / f"checkpoint-{step}"
        shutil.copytree(good, folder)
        break_it(folder)
    (tmp_path / ".checkpoint-9.partial").mkdir()
    assert find_latest(tmp_path) == good
    passed_over = [record for record in caplog.records if "passed over" in record.message]
    assert len(passed_over) == 4
    with pytest.raises(ModelError, match=r"not a usable checkpoint.*SHA-256.*resume from an older"):
        load_checkpoint(changed)


def test_the_best_is_kept_beside_the_last(tmp_path):
    for step, val_loss in ((1, 3.0), (2, 2.0), (3, 2.5), (4, None), (5, 2.0), (6, 9.0), (7, None)):
        save(tmp_path, step, val_loss=val_loss)
        assert best_val_loss(tmp_path) == min(3.0 if step == 1 else 2.0, 3.0)
    # two of them are as good as each other; the last two are kept in any case
    assert {p.name for p in tmp_path.iterdir()} == {f"checkpoint-{step}" for step in (2, 5, 6, 7)}


def test_what_a_killed_process_left_is_removed(tmp_path):
    save(tmp_path, 1)
    for name in (".checkpoint-2.partial", ".checkpoint-3.old"):
        (tmp_path / name / "sub").mkdir(parents=True)
    (tmp_path / ".checkpoints-of-mine").mkdir()
    CheckpointWriter(tmp_path, keep=1)
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint-1", ".checkpoints-of-mine"}


def test_in_the_background_the_state_of_the_moment_is_written(tmp_path):
    model = small_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, PLAN)
    with CheckpointWriter(tmp_path, keep=1, background=True) as writer:
        for step in (1, 2):
            folder = writer.save(
                model=model,
                optimizer=optimizer,
                batches={},
                position=Position(step=step),
                plan=PLAN,
            )
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(1)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-2"]
    tensors = load_checkpoint(folder).tensors()
    for name, tensor in before.items():
        assert torch.equal(tensors[f"model.{name}"], tensor + 1), name


def test_no_checkpoint_is_none(tmp_path):
    assert find_latest(tmp_path) is None
    assert find_latest(tmp_path / "missing") is None


def test_loading_runs_no_code(tmp_path):
    folder = save(tmp_path, 1)

    class Harmful:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    file = tensors_of(folder)
    torch.save({"model.norm.weight": Harmful()}, file)
    data = pickle.dumps(Harmful())
    (folder / ".metadata").write_bytes(data)  # what other writers of such folders leave
    facts = json.loads((folder / "checkpoint.json").read_text())
    for path in (file, folder / ".metadata"):
        data = path.read_bytes()
        facts["files"][path.name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "checkpoint.json").write_text(json.dumps(facts))
    model = small_model()
    with pytest.raises(ModelError, match="holds something else than tensors"):
        load_checkpoint(folder).restore(model, build_optimizer(model, PLAN))
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
    tensors = load_checkpoint(save(tmp_path, 1, model)).tensors()
    assert {name for name in tensors if name.startswith("model.")} == {
        "model.model.layers.0.self_attn.q_proj.weight",
        "model.model.layers.1.self_attn.q_proj.weight",
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
size = next((out / "checkpoint-1").glob("*.safetensors")).stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))
try:
    save(out, 2)
except OutputError as error:
    print(error)
"""


@pytest.mark.slow
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
