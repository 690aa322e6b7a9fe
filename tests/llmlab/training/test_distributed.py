import dataclasses
import os
import resource
import signal
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from llmlab.errors import LabError, ModelError, OutputError
from llmlab.model.generation import generate_ids
from llmlab.track import read_metrics
from llmlab.training import CheckpointWriter, Hooks, TrainingPlan, load_checkpoint, train
from llmlab.training.distributed import (
    first_ahead,
    is_first,
    on_first,
    rank,
    shard,
    sum_over_ranks,
    world_size,
)
from llmlab.training.optimizer import build_optimizer
from tests.llmlab.training.ranks import on_ranks
from tests.llmlab.training.small import SmallBatches, small_model

PLAN = TrainingPlan(
    max_steps=20, warmup_steps=3, learning_rate=1e-2, dtype="float32", compile="off", accumulation=2
)


def trained(out: Path, plan: TrainingPlan, resume: bool = False, seed: int = 0) -> list[float]:
    """Train the small model; return the numbers that all ranks must agree on."""
    said = []
    hooks = Hooks(on_progress=said.append)
    state = train(
        small_model(seed), SmallBatches(masked=True), plan, out=out, hooks=hooks, resume=resume
    )
    assert bool(said) == is_first()
    return [state.step, state.tokens, state.loss]


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(out / "metrics.jsonl")]


def same_tensors(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def of_model_and_optimizer(folder: Path) -> dict[str, torch.Tensor]:
    tensors = load_checkpoint(folder).tensors()
    return {name: t for name, t in tensors.items() if not name.startswith("generators.")}


@pytest.mark.parametrize(
    ("parallel", "optimizer"),
    [
        pytest.param("ddp", "adamw", marks=pytest.mark.slow),
        pytest.param("fsdp", "adamw", marks=pytest.mark.slow),
        ("fsdp", "muon"),
    ],
)
def test_two_ranks_follow_the_curve_of_one(tmp_path, parallel, optimizer):
    plan = dataclasses.replace(PLAN, parallel=parallel, optimizer=optimizer)
    alone = trained(tmp_path / "one", plan)
    ended = on_ranks(2, trained, tmp_path / "two", plan)
    assert ended[0] == ended[1]
    assert ended[0][:2] == alone[:2]
    # the same float32 sums in another order, over twenty steps
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)


@pytest.mark.parametrize("parallel", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp"])
def test_ten_steps_on_two_ranks_are_five_and_five_more(tmp_path, parallel):
    plan = dataclasses.replace(PLAN, parallel=parallel, max_steps=10, schedule="wsd")
    plan = dataclasses.replace(plan, min_lr_fraction=1.0)  # the rate knows no end
    on_ranks(2, trained, tmp_path / "whole", plan)
    half = dataclasses.replace(plan, max_steps=5)
    on_ranks(2, trained, tmp_path / "halves", half)
    on_ranks(2, trained, tmp_path / "halves", plan, True, 99)
    whole, halves = (
        load_checkpoint(tmp_path / name / "checkpoint-10").tensors() for name in ("whole", "halves")
    )
    assert {name for name in whole if name.startswith("generators.1.")}
    for tensors in (whole, halves):
        for number in range(2):
            del tensors[f"generators.{number}.python"]  # training neither seeds nor uses it
    assert same_tensors(whole, halves)
    assert losses(tmp_path / "whole") == losses(tmp_path / "halves")


def copied(checkpoint: Path, out: Path, parallel: str) -> None:
    """Take a checkpoint in, and write what came of it."""
    model, plan = small_model(seed=99), dataclasses.replace(PLAN, ema_decay=0.9)
    if parallel == "fsdp":
        shard(model)
    optimizer = build_optimizer(model, plan)
    loaded = on_first(lambda: load_checkpoint(checkpoint))
    loaded.restore(model, optimizer)
    with CheckpointWriter(out, keep=1) as writer:
        writer.save(
            model=model,
            optimizer=optimizer,
            batches=loaded.batches,
            position=loaded.position,
            plan=plan,
        )


def test_a_checkpoint_of_two_is_that_of_one_and_back(tmp_path):
    plan = dataclasses.replace(PLAN, max_steps=5, parallel="fsdp", ema_decay=0.9)
    on_ranks(2, trained, tmp_path, plan)
    name = "checkpoint-5"
    copied(tmp_path / name, tmp_path / "one", "ddp")
    on_ranks(2, copied, tmp_path / "one" / name, tmp_path / "shards", "fsdp")
    on_ranks(2, copied, tmp_path / "shards" / name, tmp_path / "replicas", "ddp")
    want = of_model_and_optimizer(tmp_path / name)
    assert any(".average" in key for key in want)
    for out in ("one", "shards", "replicas"):
        assert same_tensors(of_model_and_optimizer(tmp_path / out / name), want)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_ranks(tmp_path):
    plan = dataclasses.replace(PLAN, schedule="wsd", min_lr_fraction=1.0)
    trained(tmp_path / "whole", plan)
    resumes = (1, "ddp"), (2, "ddp"), (1, "ddp"), (2, "fsdp")
    for quarter, (size, parallel) in enumerate(resumes, start=1):
        part = dataclasses.replace(plan, max_steps=5 * quarter, parallel=parallel)
        on_ranks(size, trained, tmp_path / "parts", part, quarter > 1)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)


def evaluated(out: Path, plan: TrainingPlan) -> tuple[list[float], list[list[int]]]:
    model, seen, sampled = small_model(), [], []

    def evaluate(step: int) -> dict[str, float]:
        batch = SmallBatches().next()
        nats, count = model.loss_sum(*batch.arguments)
        nats, count = sum_over_ranks(float(nats), int(count))
        seen.append(nats / count)
        return {"val_loss": nats / count}

    def sample(step: int) -> None:
        sampled.append(list(generate_ids(model, [1, 2], max_tokens=4)))

    hooks = Hooks(evaluate=evaluate, sample=sample)
    train(model, SmallBatches(), plan, out=out, hooks=hooks)
    with torch.no_grad():  # a finished run leaves all weights on every rank
        seen.append(float(model.loss(*SmallBatches().whole().arguments)))
    return seen, sampled


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_evaluations_are_shared_and_the_first_rank_samples(tmp_path, parallel):
    plan = dataclasses.replace(
        PLAN, max_steps=6, eval_every=2, sample_every=3, ema_decay=0.5, parallel=parallel
    )
    want, texts = evaluated(tmp_path / "one", plan)
    (first, samples), (second, none) = on_ranks(2, evaluated, tmp_path / "two", plan)
    assert first == second
    assert first == pytest.approx(want, abs=1e-5)
    assert (samples, none) == (texts, [])
    rows = read_metrics(tmp_path / "two" / "metrics.jsonl")
    assert [row["val_loss"] for row in rows if "val_loss" in row] == first[:-1]
    assert len([row for row in rows if "loss" in row]) == 6


def test_all_stop_at_the_step_where_the_first_ones_clock_says_so(tmp_path):
    plan = dataclasses.replace(PLAN, max_steps=None, max_seconds=0.5)
    first, second = on_ranks(2, trained, tmp_path, plan)
    assert first == second
    assert len(losses(tmp_path)) == first[0]


def interrupted(out: Path, number: int, whose: int) -> list[object]:
    """Train until this process sends a signal to itself, if it is the one that shall."""
    plan = dataclasses.replace(PLAN, max_steps=1000, checkpoint_every=900)

    def at_seven(step: int) -> dict[str, float]:
        if step == 7 and rank() == whose:
            os.kill(os.getpid(), number)
        return {}

    plan = dataclasses.replace(plan, eval_every=1)
    state = train(small_model(), SmallBatches(), plan, out=out, hooks=Hooks(evaluate=at_seven))
    return [state.status, state.step, state.checkpoint.name]


@pytest.mark.parametrize(("number", "whose"), [(signal.SIGTERM, 1), (signal.SIGINT, 0)])
def test_a_signal_to_one_rank_saves_on_all(tmp_path, number, whose):
    ended = on_ranks(2, interrupted, tmp_path, number, whose)
    assert ended == [["interrupted", 8, "checkpoint-8"]] * 2
    tensors = load_checkpoint(tmp_path / "checkpoint-8").tensors()
    assert {"generators.0.torch", "generators.1.torch"} <= tensors.keys()


def on_a_full_disk(out: Path) -> str:
    plan = dataclasses.replace(PLAN, max_steps=4, checkpoint_every=2, parallel="fsdp")

    def fill(step: int) -> None:
        size = max(path.stat().st_size for path in (out / "checkpoint-2").iterdir())
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    plan = dataclasses.replace(plan, sample_every=3)
    try:
        train(small_model(), SmallBatches(), plan, out=out, hooks=Hooks(sample=fill))
    except OutputError as error:
        return str(error)
    return ""


def test_a_full_disk_stops_all_and_leaves_the_last_checkpoint(tmp_path):
    """Rank 0 may write files of half a checkpoint's size only, as on a disk that fills up."""
    for said in on_ranks(2, on_a_full_disk, tmp_path):
        assert f"cannot write {tmp_path / 'checkpoint-4'}: File too large" in said
    assert [p.name for p in tmp_path.glob("*checkpoint*")] == ["checkpoint-2"]
    load_checkpoint(tmp_path / "checkpoint-2")


def meets_nan(out: Path, parallel: Literal["ddp", "fsdp"]) -> str:
    model: Any = small_model()

    def spoil(module, inputs, output):
        return output * torch.nan if rank() == 1 and module.training else output

    model.model.layers[1].mlp.register_forward_hook(spoil)
    plan = dataclasses.replace(PLAN, parallel=parallel)
    try:
        train(model, SmallBatches(), plan, out=out)
    except ModelError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_loss_that_is_not_finite_on_one_rank_stops_all_and_is_placed(tmp_path, parallel):
    for said in on_ranks(2, meets_nan, tmp_path, parallel):
        assert said.startswith("step 1: the loss is nan, first in the output of model.layers.1.mlp")
        assert "on rank 1" in said


def agreed() -> tuple[object, ...]:
    def fails() -> None:
        raise LabError("rank 0 says no")

    said = []
    for block in (lambda: on_first(fails), fails_ahead):
        try:
            block()
        except LabError as error:
            said.append(str(error))
    order = []
    with first_ahead():
        order.append(rank())
    return sum_over_ranks(rank() + 1, 0.5), on_first(lambda: f"from {rank()}"), said, order


def fails_ahead() -> None:
    with first_ahead():
        if is_first():
            raise LabError("rank 0 fails ahead")


def test_what_ranks_agree_on():
    for number, answer in enumerate(on_ranks(3, agreed)):
        assert answer == (
            [6.0, 1.5],
            "from 0",
            ["rank 0 says no", "rank 0 fails ahead"],
            [number],
        )


def test_a_single_process_needs_no_group():
    assert (rank(), world_size(), is_first()) == (0, 1, True)
    assert sum_over_ranks(1.5, 2) == [1.5, 2]
    model = small_model()
    shard(model)
    assert all(type(p) is torch.nn.Parameter for p in model.parameters())
