"""The pace guard on a simulated machine, whose steps cost what a function says."""

import random
from statistics import mean, median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.serve.pace import FLOOR, NUM_RENEWING, RENEW_AFTER, Pace

RATIO = 1.75
MOST = 512


class Simulated:
    """A processor that reads its weights once a step and then computes every token.

    Args:
        memory_s: seconds of a step that waits for memory only.
        token_s: seconds of computing a token.
        speed: how much faster it has become; may be changed.
    """

    def __init__(self, memory_s: float, token_s: float) -> None:
        self.memory_s, self.token_s, self.speed = memory_s, token_s, 1.0
        self._random = random.Random(0)

    def seconds(self, num_decodes: int, num_prompt: int) -> float:
        """Return what a step takes, without noise."""
        computing = self.token_s * (num_decodes + num_prompt)
        return (max(self.memory_s, computing) + 0.1 * computing + 1e-3) / self.speed

    def step(self, pace: Pace, num_decodes: int, num_prompt: int) -> float:
        """Let `pace` observe a step that is 5 % off, and three times as long one time in fifty."""
        noise = self._random.gauss(1, 0.05) * (3 if self._random.random() < 0.02 else 1)
        seconds = self.seconds(num_decodes, num_prompt)
        pace.observe(num_decodes, num_prompt, seconds * noise)
        return seconds


# Seconds as measured on processors of a few cores, and on a GPU whose first tokens are free.
MACHINES = {
    "computing": (0.010, 0.0008),
    "memory first": (0.030, 0.0004),
    "gpu": (0.003, 0.00002),
    "too slow": (0.010, 0.0300),
}


def mixed_steps(pace: Pace, machine: Simulated, num_decodes: int, count: int) -> list[float]:
    """Read an endless prompt; return the steps' times in times of decoding alone."""
    times = []
    for _ in range(count):
        budget = pace.prompt_budget(num_decodes)
        taken = MOST if budget is None else min(MOST, budget)
        times.append(machine.step(pace, num_decodes, taken) / machine.seconds(num_decodes, 0))
    return times


def settled(machine: Simulated, num_decodes: int = 8) -> Pace:
    """Return a pace that has seen decoding alone, and a prompt."""
    pace = Pace(RATIO)
    for _ in range(20):
        machine.step(pace, num_decodes, 0)
    mixed_steps(pace, machine, num_decodes, 60)
    return pace


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("num_decodes", [1, 8, 32])
def test_steps_keep_the_pace_and_prompts_get_what_is_left(name, num_decodes):
    machine = Simulated(*MACHINES[name])
    pace = settled(machine, num_decodes)
    times = mixed_steps(pace, machine, num_decodes, 400)
    allowed = max(RATIO, machine.seconds(num_decodes, FLOOR) / machine.seconds(num_decodes, 0))
    assert median(times) < 1.1 * allowed
    assert sorted(times)[int(0.95 * len(times))] < 1.35 * allowed
    read = mean((time - 1) for time in times) / (allowed - 1)
    assert read > 0.6, "most of what the pace leaves is used"


@pytest.mark.parametrize("factor", [0.3, 3.0])
@pytest.mark.parametrize("name", ["computing", "memory first", "gpu"])
def test_it_follows_a_machine_whose_speed_changes_while_prompts_never_end(name, factor):
    machine = Simulated(*MACHINES[name])
    pace = settled(machine)
    while pace.prompt_budget(8) != 0:  # up to the next time that decoding alone is timed
        mixed_steps(pace, machine, 8, 1)
    machine.speed = factor
    mixed_steps(pace, machine, 8, NUM_RENEWING + RENEW_AFTER // 2)
    times = mixed_steps(pace, machine, 8, RENEW_AFTER // 2)
    assert median(times) < 1.15 * RATIO
    assert mean(times) - 1 > 0.5 * (RATIO - 1)


def test_short_prompts_do_not_open_the_door_for_a_long_one():
    """What few tokens cost, next to nothing here, says little about many."""
    machine = Simulated(0.030, 0.0004)
    pace = settled(machine)
    for _ in range(200):
        machine.step(pace, 8, 20)
        machine.step(pace, 8, 0)
    times = mixed_steps(pace, machine, 8, 20)
    assert max(times) < 1.5 * RATIO


def test_it_scales_with_the_number_of_streams():
    machine = Simulated(0.010, 0.0008)
    pace = Pace(RATIO)
    for num_decodes in (1, 8, 32):
        for _ in range(9):
            machine.step(pace, num_decodes, 0)
    mixed_steps(pace, machine, 8, 60)
    budgets = [pace.prompt_budget(num_decodes) for num_decodes in (1, 8, 32)]
    assert None not in budgets
    assert budgets == sorted(budgets, key=lambda budget: budget or 0)
    assert budgets[-1] != budgets[0]


def test_what_limits_nothing():
    pace = Pace(RATIO)
    assert pace.prompt_budget(0) is None
    assert pace.prompt_budget(8) is None, "nothing is known yet"
    pace.observe(8, 0, 0.01)
    pace.observe(0, 512, 9.0)
    assert pace.prompt_budget(0) is None
    assert pace.prompt_budget(8) == 2 * FLOOR, "nothing is known of prompts yet"


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2), st.sampled_from([0, 1, 16, 500]), st.sampled_from([0, 1e-9, 0.1, 99])
        ),
        max_size=100,
    ),
    st.integers(1, 3),
)
def test_prompts_always_move_on(steps, num_decodes):
    """Whatever is observed, a clock that stands still included."""
    pace = Pace(RATIO)
    for step in steps:
        pace.observe(*step)
        assert pace.prompt_budget(0) is None
        budget = pace.prompt_budget(num_decodes)
        assert budget is None or budget == 0 or budget >= FLOOR
    for _ in range(NUM_RENEWING):
        pace.observe(num_decodes, 0, 0.01)
    budget = pace.prompt_budget(num_decodes)
    assert budget is not None
    assert budget >= FLOOR
