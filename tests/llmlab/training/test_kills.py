"""A run that is killed at fifty random moments and each time started again."""

import json
import random
from pathlib import Path

import pytest

from llmlab.data.batch import Batch
from llmlab.track import read_metrics
from llmlab.training import Hooks, TrainingPlan, find_latest, load_checkpoint, train
from tests.llmlab.training.ranks import Ranks, on_ranks
from tests.llmlab.training.small import SmallBatches, small_model

pytestmark = pytest.mark.slow

NUM_KILLS, LONGEST_S, BATCH_SIZE = 50, 0.6, 4


class Recorded(SmallBatches):
    """Appends the numbers of the samples it hands out to a file."""

    def __init__(self, log: Path) -> None:
        super().__init__(BATCH_SIZE, masked=True)
        self.log = log

    def next(self) -> Batch:
        samples = list(range(self.position, self.position + self.batch_size))
        note(self.log, samples)
        return super().next()


def note(log: Path, entry: object) -> None:
    with log.open("a") as file:
        file.write(json.dumps(entry) + "\n")


def run(out: Path, log: Path, max_steps: int) -> None:
    """Train from wherever the folder stands."""
    plan = TrainingPlan(
        max_steps=max_steps,
        schedule="wsd",
        min_lr_fraction=1.0,  # so that the curve does not depend on the budget
        optimizer="muon",
        checkpoint_every=2,
        keep_checkpoints=2,
        eval_every=3,  # some of them the best so far, and saved for it
        dtype="float32",
        compile="off",
    )
    resume = find_latest(out) is not None
    model, batches = small_model(), Recorded(log)

    def evaluate(step: int) -> dict[str, float]:
        return {"val_loss": float(model.loss(*SmallBatches().next().arguments))}

    note(log, "start")
    train(model, batches, plan, out=out, hooks=Hooks(evaluate=evaluate), resume=resume)


def test_fifty_kills_lose_nothing_that_was_saved(tmp_path):
    out, log = tmp_path / "killed", tmp_path / "samples.jsonl"
    moments = random.Random(0)
    starts = []
    for _ in range(NUM_KILLS):
        starts.append(_newest_step(out))
        ranks = Ranks(1, run, out, log, 10**6)
        process = ranks.processes[0]
        written = log.stat().st_size if log.exists() else 0
        while log.exists() is False or log.stat().st_size == written:
            process.join(0.01)  # until it has begun
            assert process.is_alive()
        process.join(moments.uniform(0, LONGEST_S))
        process.kill()
        process.join()
        for folder in out.glob("checkpoint-*"):
            load_checkpoint(folder)  # raises where one is not complete
    starts.append(_newest_step(out))
    steps = starts[-1] + 5
    on_ranks(1, run, out, log, steps)

    calm = tmp_path / "calm"
    on_ranks(1, run, calm, tmp_path / "calm.jsonl", steps)
    assert _losses(out) == _losses(calm)  # to the bit
    tensors = load_checkpoint(calm / f"checkpoint-{steps}").tensors()
    for name, tensor in load_checkpoint(out / f"checkpoint-{steps}").tensors().items():
        assert name.endswith(".python") or tensor.equal(tensors[name]), name

    # Each start goes on right after the checkpoint it found, sample by sample.
    segments = _segments(log)
    assert len(segments) == NUM_KILLS + 1
    for start, samples in zip(starts, segments, strict=True):
        first = start * BATCH_SIZE
        assert samples == list(range(first, first + len(samples)))
    assert starts == sorted(starts)
    assert len(set(starts)) > NUM_KILLS // 4  # the moments were spread over steps and savings


def _newest_step(out: Path) -> int:
    latest = find_latest(out)
    return load_checkpoint(latest).position.step if latest else 0


def _losses(out: Path) -> list[tuple[int, float]]:
    rows = read_metrics(out / "metrics.jsonl")
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


def _segments(log: Path) -> list[list[int]]:
    """The samples handed out after each start."""
    segments: list[list[int]] = []
    for line in log.read_text().splitlines():
        entry = json.loads(line)
        if entry == "start":
            segments.append([])
        else:
            segments[-1] += entry
    return segments
