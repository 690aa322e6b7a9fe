import dataclasses
import itertools
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmlab.errors import ConfigError
from llmlab.training.plan import TrainingPlan
from llmlab.training.schedule import learning_rate, progress


def test_a_plan_needs_a_budget():
    with pytest.raises(ConfigError, match=r"no budget.*--max-seconds 180"):
        TrainingPlan()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_steps", 0, "max_steps=0 must be greater than 0; try 1"),
        ("max_seconds", -1.0, "max_seconds=-1.0 must be greater than 0; try 180"),
        ("learning_rate", math.nan, "learning_rate=nan must be greater than 0; try 1e-3"),
        ("warmup_steps", -1, "warmup_steps=-1 must be 0 or more"),
        ("betas", (0.9, 1.0), "beta2=1.0 must be in"),
        ("min_lr_fraction", 1.5, "min_lr_fraction=1.5 must be in"),
        ("decay_fraction", -0.1, "decay_fraction=-0.1 must be in [0, 1]; try 0.2"),
        ("ema_decay", 1.0, "ema_decay=1.0 must be in [0, 1); try 0.999"),
        ("momentum", 1.0, "momentum=1.0 must be in [0, 1); try 0.95"),
    ],
)
def test_unusable_values_are_refused(field, value, message):
    with pytest.raises(ConfigError) as caught:
        dataclasses.replace(TrainingPlan(max_steps=10), **{field: value})
    assert message in str(caught.value)


def test_differences_name_the_changed_fields():
    old = TrainingPlan(max_steps=10, betas=(0.9, 0.99))
    new = TrainingPlan(max_steps=20, betas=(0.9, 0.99))
    stored = {**vars(old), "betas": [0.9, 0.99]}  # as JSON gives it back
    assert new.differences(stored) == ["max_steps 10 -> 20"]


def test_the_schedule_is_torchs_cosine():
    plan = TrainingPlan(max_steps=40, learning_rate=2e-3, min_lr_fraction=0.05, warmup_steps=0)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=2e-3)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40, eta_min=1e-4)
    for step in range(1, 41):
        optimizer.step()
        reference.step()
        ours = learning_rate(
            plan, step=step, progress=progress(plan, steps=step, tokens=0, seconds=0)
        )
        # torch's recursive form rounds once a step
        assert ours == pytest.approx(reference.get_last_lr()[0], rel=1e-9, abs=1e-12)


def rates(**fields: Any) -> list[float]:
    plan = TrainingPlan(max_steps=100, learning_rate=1.0, warmup_steps=0, **fields)
    return [
        learning_rate(plan, step=s, progress=progress(plan, steps=s, tokens=0, seconds=0))
        for s in range(1, 101)
    ]


def test_the_linear_schedule_is_torchs():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.2, total_iters=100)
    for ours in rates(schedule="linear", min_lr_fraction=0.2):
        optimizer.step()
        reference.step()
        assert ours == pytest.approx(reference.get_last_lr()[0], rel=1e-9)


@pytest.mark.parametrize("shape", ["linear", "sqrt"])
def test_wsd_stays_and_then_decays(shape):
    found = rates(schedule="wsd", decay_fraction=0.2, decay_shape=shape, min_lr_fraction=0.0)
    assert found[:80] == [1.0] * 80
    assert found[89] == pytest.approx({"linear": 0.5, "sqrt": 1 - 0.5**0.5}[shape])
    assert found[-1] == 0.0
    assert all(later < earlier for earlier, later in itertools.pairwise(found[79:]))


def test_wsd_ends_where_it_may():
    assert rates(schedule="wsd", decay_fraction=0.0) == [1.0] * 100
    assert rates(schedule="wsd", decay_fraction=1.0, decay_shape="linear") == pytest.approx(
        rates(schedule="linear")
    )


def test_a_longer_wsd_run_begins_as_a_shorter_one():
    short = TrainingPlan(max_steps=100, schedule="wsd", decay_fraction=0.2)
    longer = dataclasses.replace(short, max_steps=1000)
    for step in range(1, 81):
        at = [
            learning_rate(plan, step=step, progress=progress(plan, steps=step, tokens=0, seconds=0))
            for plan in (short, longer)
        ]
        assert at[0] == at[1]


def test_warm_up_is_linear_in_steps():
    plan = TrainingPlan(max_steps=10**9, learning_rate=1.0, warmup_steps=10)
    rates = [learning_rate(plan, step=step, progress=0.0) for step in range(1, 13)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1, 1])


@given(
    steps=st.integers(0, 200),
    tokens=st.integers(0, 10**6),
    seconds=st.floats(0, 1000),
    later=st.floats(0, 1000),
    schedule=st.sampled_from(["cosine", "wsd", "linear"]),
)
def test_the_furthest_budget_leads_and_time_never_runs_back(
    steps, tokens, seconds, later, schedule
):
    plan = TrainingPlan(max_steps=100, max_tokens=10**5, max_seconds=180.0, schedule=schedule)
    now = progress(plan, steps=steps, tokens=tokens, seconds=seconds)
    assert now == min(1.0, max(steps / 100, tokens / 1e5, seconds / 180))
    then = progress(plan, steps=steps, tokens=tokens, seconds=seconds + later)
    assert then >= now
    assert learning_rate(plan, step=100, progress=then) <= learning_rate(
        plan, step=100, progress=now
    )


def test_a_time_budget_ends_at_the_minimum():
    plan = TrainingPlan(max_seconds=180, learning_rate=1e-3, min_lr_fraction=0.1)
    last = progress(plan, steps=999, tokens=0, seconds=180.0)
    assert learning_rate(plan, step=999, progress=last) == pytest.approx(1e-4)


def test_configs_load_no_torch():
    code = (
        "import sys; import llmlab.training.plan, llmlab.training.schedule, llmlab.pretrain.config;"
        " sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
