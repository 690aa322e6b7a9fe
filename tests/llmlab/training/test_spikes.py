import json
import random

from hypothesis import given
from hypothesis import strategies as st

from llmlab.training.spikes import SIGMAS, WARM_UP, WINDOW, SpikeGuard


def seen(steps: int, seed: int = 0) -> SpikeGuard:
    rng, guard = random.Random(seed), SpikeGuard()
    for _ in range(steps):
        assert guard.check(rng.gauss(4.0, 0.1), rng.gauss(1.0, 0.1)) is None
    return guard


def test_a_spike_is_named_with_its_limit():
    guard = seen(200)
    assert guard.check(4.3, 1.2) is None
    loss = guard.check(5.5, 1.0)
    assert loss is not None
    assert loss.startswith("loss 5.5 is above 4.")
    assert "mean + 6 standard deviations of the last 128 steps" in loss
    both = guard.check(9.0, 30.0)
    assert both is not None
    assert "gradient norm 30 is above" in both
    assert guard.spikes == 2


def test_nothing_is_a_spike_before_there_is_a_spread():
    guard = seen(WARM_UP - 1)
    assert guard.check(1e6, 1e6) is None


def test_one_outlier_does_not_hide_the_next_and_a_lasting_rise_is_taken_in():
    guard = seen(WINDOW)
    assert guard.check(1e9, 1.0)
    assert guard.check(8.0, 1.0)
    steps = next(n for n in range(500) if guard.check(6.0, 1.0) is None)
    assert steps < 30


def test_a_falling_loss_is_no_spike():
    guard = SpikeGuard()
    assert not any(guard.check(10 * 0.99**n, 5 * 0.98**n) for n in range(500))


@given(
    before=st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)), max_size=80),
    after=st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)), max_size=80),
)
def test_a_restored_guard_decides_alike_and_stays_small(before, after):
    guard = SpikeGuard()
    for loss, norm in before:
        guard.check(loss, norm)
    again = SpikeGuard.from_state(json.loads(json.dumps(guard.state_dict())))
    for loss, norm in after:
        assert again.check(loss, norm) == guard.check(loss, norm)
    assert again == guard
    assert len(guard.losses) == min(WINDOW, len(before) + len(after))


def test_the_limit_is_six_sigma():
    guard = SpikeGuard(losses=[1.0, 3.0] * 50, grad_norms=[1.0] * 100)
    assert guard.check(2.0 + SIGMAS, 1.0) is None  # mean 2, deviation 1
    assert SpikeGuard([1.0, 3.0] * 50, [1.0] * 100).check(2.001 + SIGMAS, 1.0)
