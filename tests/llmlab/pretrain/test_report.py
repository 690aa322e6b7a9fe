"""Report cards of runs that finished, were killed or failed, and runs side by side."""

import dataclasses
import json
import math
import shlex
from html.parser import HTMLParser
from pathlib import Path

import pytest
import tyro

from llmlab.cli.main import find_verb, main
from llmlab.cli.verbs import VERBS
from llmlab.config import save_config, toml_flags
from llmlab.errors import ConfigError, DataError, OutputError
from llmlab.pretrain import PretrainConfig, pretrain
from llmlab.pretrain.journal import Journal
from llmlab.pretrain.report.commands import next_commands
from llmlab.pretrain.report.comparison import spreads
from llmlab.pretrain.report.config import ReportConfig
from llmlab.pretrain.report.curves import band, points, smoothed, thinned
from llmlab.pretrain.report.findings import findings
from llmlab.pretrain.report.page import write_card
from llmlab.pretrain.report.record import read_run
from llmlab.pretrain.report.run import report
from llmlab.track import MetricsLog, silent

HOSTILE = "</pre><script>alert(1)</script>```{{ 7 * 7 }}"


class Page(HTMLParser):
    """What a page would fetch or run, and its words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.words += data


def write_run(
    folder: Path, *, steps: int = 100, status: str | None = "finished", seed: int = 0, **fields
) -> Path:
    """A run's folder as `pretrain` leaves it, with losses of a formula."""
    folder.mkdir(parents=True)
    rate = fields.get("learning_rate", 1e-3)
    save_config(
        PretrainConfig(
            data=("shards",), out=folder, max_steps=steps, prompts=("def f",), seed=seed, **fields
        ),
        folder / "config.toml",
    )
    with Journal(folder, silent) as journal, MetricsLog(folder / "metrics.jsonl") as metrics:
        journal.started(
            {
                "device": "a processor",
                "num_parameters": 8_400_000,
                "num_non_embedding": 6_300_000,
                "flops_per_token": 50_000_000,
                "memory_estimate_bytes": 10**9,
                "train_tokens": 20_000,
                "val_tokens": 1000,
                "model": {"vocab_size": 8192, "architectures": ["Qwen3ForCausalLM"]},
            }
        )
        journal({"note": "computing in float32"})
        loss = 9.0
        for step in range(1, steps + 1):
            loss = 2 + 7 / step + 100 * rate + 0.01 * seed
            row = {"step": step, "loss": loss, "lr": rate, "grad_norm": 1 / step,
                   "tokens": 1000 * step, "tok_per_s": 5000.0, "mfu": 0.4,
                   "elapsed_s": 0.2 * step}  # fmt: skip
            metrics.write({**row, "spikes": 1} if step > 60 else row)
            if step % 20 == 0:
                metrics.write({"step": step, "val_loss": loss + 0.1, "bits_per_byte": loss / 2})
        last = {"step": steps, "final": True, "val_loss": loss, "bits_per_byte": loss / 2}
        if status == "finished":
            metrics.write(last)
            (folder / "model").mkdir()
        if status is not None:
            error = {"error": "step 101: the loss is nan"} if status == "failed" else {}
            journal.ended(status, {"peak_memory_bytes": 2 * 10**9, "dtype": "float32", **error})
    with MetricsLog(folder / "samples.jsonl") as samples:
        for step in range(10, steps + 1, 10):
            samples.write({"step": step, "prompt": "def f", "text": f"(x): {HOSTILE} {step}"})
    (folder / f"checkpoint-{steps}").mkdir()
    return folder


def test_the_card_of_a_finished_run_stands_alone_and_shows_everything(tmp_path):
    page = Page(write_card(write_run(tmp_path / "run")).read_text(encoding="utf-8"))
    assert page.loaded == ["data:,"], "nothing is downloaded"
    assert "script" not in page.tags
    assert HOSTILE in page.words
    for words in (
        "held-out bits per byte", "1.0850", "8.4M", "100k", "20 s", "2.00 GB", "1.00 GB",
        "Gradient norm, before clipping", "Learning rate", "Tokens per second", "MFU",
        "after step 100", "after step 10", "ln V", "9.011", "5.00", "1 note",
        "1 spike of the loss or the gradient, at step 61",
        "The run saw its text 5.0 times",
        "computing in float32",
    ):  # fmt: skip
        assert words in page.words, words
    assert page.tags.count("figure") == 6
    markdown = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert "- held-out bits per byte: **1.0850**" in markdown
    assert f"````text\ndef f(x): {HOSTILE} 100\n````" in markdown


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        ("interrupted", "The run was interrupted after step 100; the last checkpoint is that of"),
        ("failed", "The run failed after step 100; the last checkpoint is that of step 100. step "
                   "101: the loss is nan"),
        (None, "The run has not ended: it still goes on, or was killed after step 100"),
    ],
)  # fmt: skip
def test_a_run_that_did_not_finish_says_so_and_how_to_go_on(tmp_path, status, sentence):
    run = read_run(write_run(tmp_path / "run", status=status))
    assert findings(run)[0].startswith(sentence)
    (command,) = next_commands(run)
    assert command.line == f"llmlab pretrain --config {tmp_path / 'run' / 'config.toml'} --resume"
    page = Page(write_card(tmp_path / "run").read_text())
    assert command.line in page.words


def test_nothing_but_a_config_is_a_run_too(tmp_path):
    save_config(PretrainConfig(data=("a",), out=tmp_path, max_steps=1), tmp_path / "config.toml")
    assert "No step was logged" in write_card(tmp_path).read_text()
    (command,) = next_commands(read_run(tmp_path))
    assert command.line.endswith("--overwrite")
    with pytest.raises(DataError, match="nowhere is no run: it has neither"):
        read_run(tmp_path / "nowhere")


def test_every_command_is_one_the_program_takes(tmp_path):
    commands = next_commands(read_run(write_run(tmp_path / "a run")))
    assert len(commands) == 8
    for command in commands:
        program, *words = shlex.split(command.line)
        assert program == "llmlab"
        name, flags = find_verb(words)
        module, _, attribute = VERBS[name].config.partition(":")
        config_class = getattr(__import__(module, fromlist=[attribute]), attribute)
        if "--config" in flags:
            at = flags.index("--config")
            flags = [*toml_flags(flags[at + 1], config_class), *flags[:at], *flags[at + 2 :]]
        tyro.cli(config_class, args=flags)
    longer = next(command.line for command in commands if "--resume" in command.line)
    assert longer.endswith("--max-steps 200")


def test_a_real_run_leaves_its_card_and_a_failed_one_its_reason(config, tmp_path):
    config = dataclasses.replace(config, max_steps=2, eval_every=1, tensorboard=True)
    result = pretrain(config)
    run = read_run(config.out)
    assert run.status == "finished"
    assert run.facts["num_parameters"] == result.num_parameters
    assert 0 < run.facts["num_non_embedding"] < result.num_parameters
    assert run.ended is not None
    assert run.ended["peak_memory_bytes"] > 10**7
    assert "Held-out bits per byte" in result.report.read_text()
    assert any("computing in float32, as asked" in note for note in run.notes)
    assert not any("sample" in note or "val_loss" in note for note in run.notes)
    assert list((config.out / "tensorboard").glob("events*"))
    again = pretrain(dataclasses.replace(config, resume=True, max_steps=3))
    assert len({row["run_id"] for row in read_run(again.out).starts}) == 1
    assert len(read_run(again.out).starts) == 2

    class Broken(Exception):
        pass

    def fail(model, tokenizer, step):
        raise Broken("no disk")

    broken = dataclasses.replace(config, out=tmp_path / "broken", tensorboard=False)
    with pytest.raises(Broken):
        pretrain(broken, on_eval=fail)
    run = read_run(broken.out)
    assert run.status == "failed"
    assert "Broken: no disk" in (broken.out / "report.html").read_text()


def test_the_spread_over_seeds_is_the_sample_standard_deviation(tmp_path, capsys):
    folders = [
        write_run(tmp_path / f"r{rate}s{seed}", learning_rate=rate, seed=seed)
        for rate in (1e-3, 2e-3)
        for seed in (0, 1, 2)
    ]
    groups = spreads([read_run(folder) for folder in folders])
    assert [group.label for group in groups] == ["learning_rate=0.001", "learning_rate=0.002"]
    assert groups[0].seeds == (0, 1, 2)
    assert groups[0].mean == pytest.approx(2 + 0.07 + 0.1 + 0.01)
    assert groups[0].std == pytest.approx(0.01)
    assert (groups[0].low, groups[0].high) == pytest.approx((2.17, 2.19))

    words = ["pretrain", "report", *map(str, folders), "--out", str(tmp_path / "all")]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1] == str(tmp_path / "all" / "report.html")
    assert "2.1800" in shown
    page = Page((tmp_path / "all" / "report.html").read_text())
    assert "Lowest held-out loss with learning_rate=0.001: 2.1800 ± 0.0100 (3 seeds)" in page.words
    assert "Final held-out loss: mean and range over seeds" in page.words
    assert main(words) == 1
    assert "already exists; choose another --out or add --overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 6


def test_one_run_is_reported_again_in_its_place(tmp_path):
    folder = write_run(tmp_path / "run")
    assert report(ReportConfig(runs=(folder,))).report == folder / "report.html"
    report(ReportConfig(runs=(folder,)))
    with pytest.raises(OutputError):
        report(ReportConfig(runs=(folder,), out=folder))
    with pytest.raises(ConfigError, match="2 runs have no folder in common; add --out"):
        ReportConfig(runs=(folder, folder))
    with pytest.raises(ConfigError, match="no RUN given"):
        ReportConfig(runs=())


def test_validation_that_rises_and_speed_that_falls_are_noticed(tmp_path):
    folder = write_run(tmp_path / "run")
    rows = [{"step": n, "loss": 3.0, "tokens": n, "elapsed_s": n, "tok_per_s": 900.0 - 6 * n}
            for n in range(1, 101)]  # fmt: skip
    rows += [{"step": n, "val_loss": 3.0 + abs(n - 40) / 100} for n in (20, 40, 60, 80, 100)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = " ".join(findings(read_run(folder)))
    assert "Held-out loss was lowest at step 40 (3.0000) and is 3.6000 at the end" in said
    assert "Speed fell from 672 to 372 tokens per second" in said


def test_smoothing_starts_at_the_first_value_and_thinning_keeps_the_ends():
    values = [(float(n), 5.0) for n in range(1000)]
    assert all(y == pytest.approx(5.0) for _, y in smoothed(values))
    rising = [(float(n), float(n)) for n in range(1000)]
    assert smoothed(rising, span=1) == rising
    thin = thinned(rising, columns=100)
    assert (thin[0], thin[-1]) == (rising[0], rising[-1])
    assert len(thin) <= 102
    assert band(rising, columns=10)[0] == (99.0, 0.0, 99.0)
    odd = [{"step": 1, "loss": math.nan}, {"step": 2, "loss": "x"}, {"step": 3, "loss": 1}, {}]
    assert points(odd, "loss") == [(3.0, 1.0)]
