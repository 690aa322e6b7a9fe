import dataclasses
import json
import math
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from llmlab.errors import DataError, ModelError, OutputError
from llmlab.track import read_metrics
from llmlab.training import Hooks, TrainingPlan, find_latest, load_checkpoint, train
from tests.llmlab.training.small import SmallBatches, T, small_model

PLAN = TrainingPlan(max_steps=10, warmup_steps=3, dtype="float32", compile="off", seed=7)
ROOT = Path(__file__).parents[3]


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, by name."""
    return load_checkpoint(folder).tensors()


def test_ten_steps_are_five_and_five_more(tmp_path):
    whole = train(small_model(), SmallBatches(), PLAN, out=tmp_path / "whole")
    half_plan = dataclasses.replace(PLAN, checkpoint_every=5)

    class Stop(Exception):
        pass

    def stop_at_six(step: int) -> dict[str, float]:
        if step == 6:
            raise Stop  # as if killed: steps after the checkpoint are lost
        torch.rand(3)  # must not shift the run's generator
        return {"val_loss": 1.0}

    hooks = Hooks(evaluate=stop_at_six)
    evals = dataclasses.replace(half_plan, eval_every=1)
    with pytest.raises(Stop):
        train(small_model(), SmallBatches(), evals, out=tmp_path / "two", hooks=hooks)
    assert find_latest(tmp_path / "two") == tmp_path / "two" / "checkpoint-5"
    again = train(small_model(seed=99), SmallBatches(), PLAN, out=tmp_path / "two", resume=True)

    assert (again.step, again.tokens, again.loss) == (whole.step, whole.tokens, whole.loss)
    one, two = state_of(whole.checkpoint), state_of(again.checkpoint)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name
    curves = [
        [(row["step"], row["loss"], row["lr"]) for row in read_metrics(log) if "loss" in row]
        for log in (tmp_path / "whole" / "metrics.jsonl", tmp_path / "two" / "metrics.jsonl")
    ]
    assert curves[0] == curves[1]
    assert [step for step, _, _ in curves[0]] == list(range(1, 11))


def test_training_learns_and_reports(tmp_path):
    rows, sampled = [], []
    model = small_model()

    def evaluate(step: int) -> dict[str, float]:
        assert not model.training
        assert not torch.is_grad_enabled()
        return {"val_loss": float(model.loss(*SmallBatches().next().arguments))}

    plan = dataclasses.replace(
        PLAN, max_steps=60, learning_rate=1e-2, eval_every=25, sample_every=30, checkpoint_every=20
    )
    hooks = Hooks(on_progress=rows.append, evaluate=evaluate, sample=sampled.append)
    state = train(model, SmallBatches(), plan, out=tmp_path, hooks=hooks, flops_per_token=6000.0)
    assert state.status == "finished"
    assert state.tokens == 60 * 4 * T
    assert sampled == [30, 60]
    assert model.training

    written = read_metrics(tmp_path / "metrics.jsonl")
    steps = [row for row in written if "loss" in row]
    keys = {"step", "loss", "lr", "grad_norm", "tokens", "tok_per_s", "mfu", "elapsed_s"}
    assert set(steps[0]) == keys
    assert steps[0]["loss"] == pytest.approx(math.log(32), rel=0.05)
    assert steps[-1]["loss"] < 0.3 * steps[0]["loss"]
    assert [row["step"] for row in written if "val_loss" in row] == [25, 50, 60]
    assert steps[-1]["lr"] == pytest.approx(1e-2 * PLAN.min_lr_fraction)
    shown = next(row for row in rows if row.get("step") == "60/60")
    assert shown["eta"] == 0
    # the last two; the evaluation at step 50 was the best by then
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-50",
        "checkpoint-60",
    ]


@pytest.mark.parametrize(
    ("budget", "steps"), [({"max_tokens": 4 * T * 3}, 3), ({"max_tokens": 4 * T * 3 + 1}, 4)]
)
def test_token_budgets(tmp_path, budget, steps):
    plan = TrainingPlan(**budget, dtype="float32", compile="off")
    assert train(small_model(), SmallBatches(), plan, out=tmp_path).step == steps


def test_a_time_budget_ends_the_run_at_the_lowest_rate(tmp_path):
    plan = TrainingPlan(max_seconds=0.3, dtype="float32", compile="off", warmup_steps=0)
    state = train(small_model(), SmallBatches(), plan, out=tmp_path)
    assert 0.3 <= state.elapsed_s < 30
    rates = [row["lr"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert rates == sorted(rates, reverse=True)
    floor = plan.learning_rate * plan.min_lr_fraction
    assert floor <= rates[-1] < 2 * floor


def test_a_longer_budget_extends_a_finished_run(tmp_path):
    train(small_model(), SmallBatches(), PLAN, out=tmp_path)
    notes = []
    longer = dataclasses.replace(PLAN, max_steps=12)
    state = train(
        small_model(),
        SmallBatches(),
        longer,
        out=tmp_path,
        resume=True,
        hooks=Hooks(on_progress=notes.append),
    )
    assert state.step == 12
    assert any("max_steps 10 -> 12" in note.get("note", "") for note in notes)
    unchanged = train(small_model(), SmallBatches(), longer, out=tmp_path, resume=True)
    assert (unchanged.step, unchanged.status) == (12, "finished")
    assert math.isnan(unchanged.loss)


def test_a_non_finite_loss_stops_before_the_update(tmp_path):
    model = small_model()
    plan = dataclasses.replace(PLAN, checkpoint_every=2)

    class Poisoned(SmallBatches):
        def next(self):
            if self.position == 3 * self.batch_size:  # the fourth step
                with torch.no_grad():
                    model.get_parameter("model.norm.weight")[0] = torch.nan
                self.poisoned = {n: p.detach().clone() for n, p in model.named_parameters()}
            return super().next()

    batches = Poisoned()
    with pytest.raises(ModelError) as caught:
        train(model, batches, plan, out=tmp_path)
    message = str(caught.value)
    assert "step 4: the loss is nan, and so is the weight model.norm.weight; stopped" in message
    assert "checkpoint-2" in message
    assert "Lower learning_rate=0.001" in message
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter, batches.poisoned[name], rtol=0, atol=0, equal_nan=True
        )
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]


class Spiky(SmallBatches):
    """Batch 40 is nothing like the others."""

    def row(self, index: int) -> torch.Tensor:
        row = super().row(index)
        return row.flip(0) if index // self.batch_size == 39 else row


def test_the_update_of_a_spike_is_left_out_and_a_resumed_run_agrees(tmp_path):
    plan = dataclasses.replace(
        PLAN, max_steps=45, learning_rate=1e-2, skip_spikes=True, optimizer="muon"
    )
    notes = []
    hooks = Hooks(on_progress=notes.append)
    whole = train(small_model(), Spiky(), plan, out=tmp_path / "whole", hooks=hooks)
    spikes = [row["note"] for row in notes if "standard deviations" in row.get("note", "")]
    assert len(spikes) == 1
    assert spikes[0].startswith("step 40: gradient norm ")
    assert spikes[0].endswith("; the update is left out")
    rows = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert [row["step"] for row in rows if row.get("spikes") == 1] == list(range(40, 46))
    # AdamW, for the embedding, counts the updates it made
    tensors = state_of(whole.checkpoint)
    assert {float(t) for name, t in tensors.items() if name.endswith(".step")} == {44.0}

    class Stop(Exception):
        pass

    def stop(step: int) -> dict[str, float]:
        raise Stop

    cut = dataclasses.replace(plan, checkpoint_every=38, eval_every=39)
    with pytest.raises(Stop):
        train(small_model(), Spiky(), cut, out=tmp_path / "two", hooks=Hooks(evaluate=stop))
    again = train(small_model(seed=3), Spiky(), plan, out=tmp_path / "two", resume=True)
    one, two = state_of(whole.checkpoint), state_of(again.checkpoint)
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name
    positions = [load_checkpoint(state.checkpoint).position.spikes for state in (whole, again)]
    assert positions[0] == positions[1]


def test_a_spike_is_noted_when_none_is_left_out(tmp_path):
    notes = []
    plan = dataclasses.replace(PLAN, max_steps=41, learning_rate=1e-2)
    train(small_model(), Spiky(), plan, out=tmp_path, hooks=Hooks(on_progress=notes.append))
    assert any(
        "step 40: gradient norm" in n.get("note", "") and "going on" in n["note"] for n in notes
    )


def test_a_layer_that_breaks_is_named(tmp_path):
    model = small_model()
    model.get_submodule("model.layers.1.mlp").register_forward_hook(
        lambda _, __, output: output * torch.inf
    )
    with pytest.raises(ModelError, match=r"first in the output of model\.layers\.1\.mlp; stopped"):
        train(model, SmallBatches(), PLAN, out=tmp_path)


def test_a_step_without_scored_labels_names_itself(tmp_path):
    class Unscored(SmallBatches):
        def next(self):
            batch = super().next()
            batch.labels.fill_(-100)
            return batch

    with pytest.raises(DataError, match="step 1: 0 of 32 labels are scored"):
        train(small_model(), Unscored(), PLAN, out=tmp_path)


def test_a_run_is_not_overwritten_and_nothing_is_not_resumed(tmp_path):
    with pytest.raises(ModelError, match="no usable checkpoint-N; start it without --resume"):
        train(small_model(), SmallBatches(), PLAN, out=tmp_path, resume=True)
    train(small_model(), SmallBatches(), PLAN, out=tmp_path)
    with pytest.raises(OutputError, match="checkpoint-10 exists; add --resume"):
        train(small_model(), SmallBatches(), PLAN, out=tmp_path)


def test_auto_stays_with_what_the_run_began_with(tmp_path):
    plan = dataclasses.replace(PLAN, max_steps=2, dtype="bfloat16")
    train(small_model(), SmallBatches(), plan, out=tmp_path)
    auto = dataclasses.replace(PLAN, max_steps=3, dtype="auto", compile="auto")
    state = train(small_model(), SmallBatches(), auto, out=tmp_path, resume=True)
    assert state.dtype == "bfloat16"
    assert load_checkpoint(state.checkpoint).position.compiled is False


def test_signals_are_left_alone_outside_the_main_thread(tmp_path):
    states = []
    thread = threading.Thread(
        target=lambda: states.append(train(small_model(), SmallBatches(), PLAN, out=tmp_path))
    )
    thread.start()
    thread.join(60)
    assert states[0].status == "finished"


ENDLESS = """
import signal
import sys
from pathlib import Path
from llmlab.training import Hooks, TrainingPlan, train
from tests.llmlab.training.small import SmallBatches, small_model

plan = TrainingPlan(max_steps=10**6, dtype="float32", compile="off")
def show(row):
    if row.get("step", "").startswith("5/"):
        print("started", flush=True)
out, hooks = Path(sys.argv[1]), Hooks(on_progress=show)
before = signal.getsignal(signal.SIGINT)
state = train(small_model(), SmallBatches(), plan, out=out, hooks=hooks)
print(state.status, state.step, state.checkpoint.name)
print(signal.getsignal(signal.SIGINT) is before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_a_checkpoint_after_the_step(tmp_path, number):
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, tmp_path], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    status, step, name = output.splitlines()[0].split()
    assert (status, name) == ("interrupted", f"checkpoint-{step}")
    assert output.splitlines()[1] == "True"
    assert load_checkpoint(tmp_path / name).position.step == int(step)
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == int(step)


def test_compilation_falls_back_without_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    notes = []
    plan = dataclasses.replace(PLAN, max_steps=1, compile="on")
    hooks = Hooks(on_progress=notes.append)
    state = train(small_model(), SmallBatches(), plan, out=tmp_path, hooks=hooks)
    assert state.status == "finished"
    wanted = {"note": "torch.compile is off: a C++ compiler (no-such-compiler) is not installed"}
    assert wanted in notes


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # torch's own,
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor.*:UserWarning")  # while tracing
@pytest.mark.parametrize("architecture", ["Qwen3ForCausalLM", "GPT2LMHeadModel"])
def test_the_compiled_model_trains_as_the_plain_one(tmp_path, architecture):
    """Inductor takes a layer as one graph, which all share, and the head as another."""
    torch.compiler.reset()
    counters.clear()
    notes = []
    plain = train(
        small_model(architecture=architecture), SmallBatches(), PLAN, out=tmp_path / "plain"
    )
    model = small_model(architecture=architecture)
    fast = train(
        model,
        SmallBatches(),
        dataclasses.replace(PLAN, compile="on"),
        out=tmp_path / "fast",
        hooks=Hooks(on_progress=notes.append),
    )
    assert "torch.compile is on" in str(notes)
    assert load_checkpoint(fast.checkpoint).position.compiled
    assert counters["stats"]["unique_graphs"] == 2
    # fused kernels round in another order, over ten steps
    assert fast.loss == pytest.approx(plain.loss, rel=1e-4)
    assert not any("forward" in vars(module) for module in model.modules())
    assert "head_loss_sum" not in vars(model)
