"""The moving average of the weights, alone and in a run."""

import dataclasses

import pytest
import torch

from llmlab.training import Hooks, TrainingPlan, load_checkpoint, train
from llmlab.training.averaging import averaged, keep_average, use_average
from llmlab.training.optimizer import build_optimizer
from tests.llmlab.training.small import SmallBatches, small_model

PLAN = TrainingPlan(
    max_steps=8, warmup_steps=2, learning_rate=1e-2, dtype="float32", compile="off", ema_decay=0.6
)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9999])
def test_the_average_is_its_formula(decay):
    model = small_model()
    optimizer = build_optimizer(model, PLAN)
    keep_average(optimizer, decay)
    expected: dict[str, torch.Tensor] = {}
    for step in range(1, 8):
        model.loss(*SmallBatches().next().arguments).backward()
        optimizer.step()
        d = min(decay, (1 + step) / (10 + step))
        for name, p in weights(model).items():
            expected[name] = d * expected.get(name, p) + (1 - d) * p
    before = weights(model)
    with averaged(optimizer):
        for name, p in weights(model).items():
            torch.testing.assert_close(p, expected[name], atol=1e-6, rtol=1e-5)
    assert all(torch.equal(p, before[name]) for name, p in weights(model).items())
    use_average(optimizer)
    assert not torch.equal(model.head_weight(), before["model.embed_tokens.weight"])


def test_a_run_evaluates_and_returns_the_average_and_trains_on_the_weights(tmp_path):
    plain, model, seen = small_model(), small_model(), []
    hooks = Hooks(evaluate=lambda step: seen.append(weights(model)) or {"val_loss": 0.0})
    train(plain, SmallBatches(), dataclasses.replace(PLAN, ema_decay=0.0), out=tmp_path / "plain")
    plan = dataclasses.replace(PLAN, eval_every=3)
    state = train(model, SmallBatches(), plan, out=tmp_path / "average", hooks=hooks)
    last = load_checkpoint(state.checkpoint).tensors()
    for name, p in plain.named_parameters():
        assert torch.equal(p, last[f"model.{name}"])  # averaging does not change the training
        assert torch.equal(seen[-1][name], model.get_parameter(name))
    assert any(not torch.equal(p, model.get_parameter(n)) for n, p in plain.named_parameters())


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "lion"])
def test_a_resumed_average_is_the_same_to_the_bit(tmp_path, optimizer):
    plan = dataclasses.replace(PLAN, optimizer=optimizer)
    plan = dataclasses.replace(plan, schedule="wsd", min_lr_fraction=1.0)  # no end in sight
    whole, again = small_model(), small_model(seed=5)
    train(whole, SmallBatches(), plan, out=tmp_path / "whole")
    half = dataclasses.replace(plan, max_steps=4)
    train(small_model(), SmallBatches(), half, out=tmp_path / "halves")
    train(again, SmallBatches(), plan, out=tmp_path / "halves", resume=True)
    for name, p in whole.named_parameters():
        assert torch.equal(p, again.get_parameter(name)), name


def test_an_average_may_begin_at_a_resume(tmp_path):
    without = dataclasses.replace(PLAN, max_steps=4, ema_decay=0.0)
    train(small_model(), SmallBatches(), without, out=tmp_path)
    state = train(small_model(), SmallBatches(), PLAN, out=tmp_path, resume=True)
    groups = load_checkpoint(state.checkpoint).groups
    assert [group["averaged_steps"] for group in groups] == [4, 4]
