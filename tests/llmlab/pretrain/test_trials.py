from pathlib import Path

import pytest

from llmlab.errors import ConfigError
from llmlab.pretrain.sweep.config import SweepConfig
from llmlab.pretrain.sweep.trials import Trial, make_trials

SHARED = ("data=shards", "max_steps=10")


def trials(**fields):
    return make_trials(SweepConfig(out=Path("out"), set=SHARED, **fields))


def test_a_grid_is_every_combination_in_folders_of_their_own():
    found = trials(grid=("learning_rate=1e-3,0.003", "max_tokens=500k,2M,1e6"))
    assert [trial.name for trial in found] == [
        f"learning_rate={rate},max_tokens={tokens}"
        for rate in (0.001, 0.003)
        for tokens in (500_000, 2_000_000, 1_000_000)
    ]
    first = found[0].config
    assert (first.learning_rate, first.max_tokens, first.max_steps) == (1e-3, 500_000, 10)
    assert first.out == Path("out/runs/learning_rate=0.001,max_tokens=500000")
    assert not first.overwrite


def test_the_same_value_in_two_spellings_is_one_run():
    assert len(trials(grid=("learning_rate=1e-3,0.001,.001",))) == 1


def test_fields_of_several_items_and_of_words():
    found = trials(grid=("betas=0.9+0.95,0.8+0.9", "tensorboard=true,false", "preset=tiny,char"))
    assert {trial.config.betas for trial in found} == {(0.9, 0.95), (0.8, 0.9)}
    assert {(t.config.tensorboard, t.config.preset) for t in found} == {
        (True, "tiny"), (True, "char"), (False, "tiny"), (False, "char"),
    }  # fmt: skip


def rate(trial: Trial) -> float:
    assert trial.config.learning_rate is not None
    return trial.config.learning_rate


def test_draws_lie_in_their_range_repeat_and_grow():
    words = ("learning_rate=log:1e-4:1e-2", "batch_tokens=256,512", "warmup_steps=5:50")
    found = trials(random=("12", *words), seed=3)
    assert len({trial.name for trial in found}) == 12
    for trial in found:
        assert 1e-4 <= rate(trial) <= 1e-2
        assert trial.config.batch_tokens in (256, 512)
        assert 5 <= trial.config.warmup_steps <= 50
    assert trials(random=("12", *words), seed=3) == found
    assert trials(random=("15", *words), seed=3)[:12] == found
    assert trials(random=("12", *words), seed=4) != found
    below = sum(rate(t) < 1e-3 for t in trials(random=("24", words[0])))
    assert 4 < below < 20, "equally many a decade"


def test_draws_are_combined_with_the_grid():
    found = trials(random=("3", "learning_rate=log:1e-4:1e-2"), grid=("seed=0,1",))
    assert len(found) == 6
    assert len({trial.config.learning_rate for trial in found}) == 3


def test_a_base_file_gives_way_to_set_and_grid(tmp_path):
    base = tmp_path / "base.toml"
    base.write_text('data = ["other"]\nout = "there"\nseed = 7\nwarmup_steps = 3\nmax_steps = 99\n')
    (found,) = trials(base=base, grid=("seed=1",))
    assert found.config.data in (("shards",), Path("shards"))
    assert (found.config.seed, found.config.warmup_steps, found.config.max_steps) == (1, 3, 10)
    assert found.config.out == Path("out/runs/seed=1")


def test_the_held_out_run_is_last_and_marked():
    found = trials(grid=("max_tokens=1k,2k",), fit=True, held_out=("preset=tiny", "max_tokens=8k"))
    assert [trial.held_out for trial in found] == [False, False, True]
    assert found[-1].name == "held-out,preset=tiny,max_tokens=8000"


def test_long_and_strange_values_make_safe_names():
    (found,) = trials(grid=("tokenizer=../a b/" + "x" * 200,))
    assert "/" not in found.name
    assert len(found.name) < 120


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"grid": ("lerning_rate=1",)}, "no field 'lerning_rate' in llmlab pretrain; did you mean"),
        ({"grid": ("out=a,b",)}, "'out=a,b': a sweep sets out itself; leave it out"),
        ({"grid": ("learning_rate",)}, "'learning_rate' is not field=value"),
        ({"grid": ("learning_rate=fast",)}, "these are no settings of `llmlab pretrain`"),
        ({"grid": ("max_steps=1.5",)}, "max_steps=1.5 is not a whole number; try 2"),
        ({"grid": ("max_steps=many",)}, "max_steps=many is not a whole number; try 2000, 500k"),
        ({"grid": ("learning_rate=-1",)}, "learning_rate=-1.0 must be greater than 0"),
        ({"grid": ("tensorboard=yes",)}, "tensorboard=yes must be true or false"),
        ({"random": ("2", "learning_rate=log:0:1")}, "learning_rate=log:0:1 is no range"),
        ({"random": ("2", "learning_rate=2:1")}, "learning_rate=2:1 is no range"),
        ({"random": ("learning_rate=1:2",)}, "must be a number of draws and what to draw"),
        ({"grid": ("seed=1",), "held_out": ("seed=2",)}, "is compared with a fit; add --fit"),
        ({}, "nothing to vary: grid and random are both unset"),
    ],
)
def test_words_that_are_no_settings(fields, message):
    with pytest.raises(ConfigError) as caught:
        trials(**fields)
    assert message in str(caught.value)
