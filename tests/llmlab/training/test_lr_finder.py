import math

import pytest
import torch

from llmlab.errors import ModelError
from llmlab.training import TrainingPlan
from llmlab.training.lr_finder import HIGHEST, LOWEST, find_learning_rate
from tests.llmlab.training.small import SmallBatches, small_model

PLAN = TrainingPlan(max_steps=1, dtype="float32")


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "lion"])
def test_the_suggested_rate_lies_where_the_loss_falls(optimizer):
    plan = TrainingPlan(max_steps=1, dtype="float32", optimizer=optimizer)
    ramp = find_learning_rate(small_model(), SmallBatches(8), plan, num_steps=40)
    assert len(ramp.rates) == len(ramp.losses) == len(ramp.smoothed)
    assert ramp.rates[0] == LOWEST
    ratios = [b / a for a, b in zip(ramp.rates, ramp.rates[1:], strict=False)]
    assert ratios == pytest.approx([(HIGHEST / LOWEST) ** (1 / 39)] * len(ratios))
    assert ramp.losses[0] == pytest.approx(math.log(32), rel=0.05)
    lowest = ramp.rates[ramp.smoothed.index(min(ramp.smoothed))]
    assert 1e-4 < ramp.suggested < lowest


def test_a_ramp_over_nothing_to_learn_says_so():
    class Noise(SmallBatches):
        def row(self, index: int) -> torch.Tensor:
            generator = torch.Generator().manual_seed(index)
            return torch.randint(32, (9,), generator=generator)

    model = small_model()
    model.head_weight().requires_grad_(False).zero_()
    with pytest.raises(ModelError, match=r"the loss did not fall in 20 steps.*check the data"):
        find_learning_rate(model, Noise(), PLAN, num_steps=20)


def test_a_model_that_breaks_on_the_way_still_gives_a_rate():
    model = small_model()
    steps = []

    def overflow(module, arguments, output):
        steps.append(1)
        return output * (math.inf if len(steps) > 30 else 1.0)

    model.get_submodule("model.norm").register_forward_hook(overflow)
    ramp = find_learning_rate(model, SmallBatches(8), PLAN, num_steps=40)
    assert len(ramp.rates) == 30
    again = find_learning_rate(small_model(), SmallBatches(8), PLAN, num_steps=40)
    assert again.losses[:30] == ramp.losses
    assert ramp.suggested < ramp.rates[-1]
