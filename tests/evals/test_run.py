"""A whole run: the numbers, the results folder, the verb."""

import json
import math
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from llmlab.cli.main import main
from llmlab.errors import EvalError, OutputError
from llmlab.evals import FolderModel, evaluate
from llmlab.evals.models import TextLogprob
from llmlab.evals.scoring import run_task
from llmlab.evals.task import ChoiceExample, Task, TextExample
from tests.evals.conftest import TEXT


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.txt").write_text(TEXT * (number + 1))
    return folder


def test_bits_per_byte_is_the_sum_over_the_sum(folder: Path, notes: Path, tmp_path: Path) -> None:
    results = evaluate(model=folder, tasks=[f"bits_per_byte:{notes}"], out=tmp_path / "out")
    texts = [file.read_text() for file in sorted(notes.iterdir())]
    scored = FolderModel(folder).loglikelihood_rolling(texts)
    logprobs = [text.logprob for text in scored if isinstance(text, TextLogprob)]
    sizes = [len(text.encode()) for text in texts]
    expected = -sum(logprobs) / math.log(2) / sum(sizes)
    number = results[f"bits_per_byte:{notes}"]["bits_per_byte"]
    assert number.value == pytest.approx(expected, rel=1e-6)
    assert number.low is not None
    assert number.high is not None
    assert number.low <= number.value <= number.high
    assert results[f"bits_per_byte:{notes}"]["byte_perplexity"].value == pytest.approx(2**expected)


def test_the_folder_holds_every_example_and_lm_evals_keys(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tasks = ["choices_small", "short_answers"]
    results = evaluate(model=folder, tasks=tasks, out=out, limit=6, seed=3)
    content = json.loads((out / "results.json").read_text())
    assert content["results"]["choices_small"]["acc,none"] == results["choices_small"]["acc"].value
    assert "acc_stderr,none" in content["results"]["choices_small"]
    assert content["versions"] == {"choices_small": 1, "short_answers": 1}
    assert content["n-samples"]["short_answers"] == {"original": 6, "effective": 6}
    assert content["config"]["limit"] == 6
    assert len(content["model_fingerprint"]) == 64
    rows = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert len(rows) == 12
    assert {len(row["doc_hash"]) for row in rows} == {64}
    acc = sum(row["scores"]["acc"] for row in rows if row["task"] == "choices_small") / 6
    assert acc == results["choices_small"]["acc"].value
    report = (out / "report.md").read_text()
    assert "| choices_small | 1 | acc | ↑ |" in report


def test_the_page_stands_alone_and_escapes_what_models_write(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "<b>.txt"
    source.write_text("<script>alert(1)</script> & more\n" * 3)
    out = tmp_path / "out"
    evaluate(model=folder, tasks=[f"bits_per_byte:{source}", "choices_small"], out=out, limit=3)
    page = (out / "report.html").read_text()
    assert "<script" not in page
    assert "http://" not in page
    assert "https://" not in page
    assert page.count("<svg") == 4
    HTMLParser(convert_charrefs=True).feed(page)


def test_two_runs_give_the_same_numbers(folder: Path, tmp_path: Path) -> None:
    runs = [
        evaluate(model=folder, tasks=["choices_small"], out=tmp_path / name, limit=8)
        for name in ("one", "two")
    ]
    assert runs[0].rows() == runs[1].rows()
    assert (tmp_path / "one" / "samples.jsonl").read_text() == (
        tmp_path / "two" / "samples.jsonl"
    ).read_text()


def test_accuracy_by_hand(folder: Path) -> None:
    """The right choice is the likeliest, and per byte a longer one wins."""
    model = FolderModel(folder)
    choices = (" hello", " lazy dog hello name quick brown")
    task = Task(
        name="hand",
        version=1,
        description="two choices",
        examples=tuple(
            ChoiceExample(id=str(at), context="fox", choices=choices, answer=at) for at in (0, 1)
        ),
    )
    result = run_task(task, model)
    sums = result.samples[0].scores["logprobs"]
    assert sums[0] > sums[1]
    assert [sample.scores["acc"] for sample in result.samples] == [1.0, 0.0]
    per_byte = [sums[0] / len("hello"), sums[1] / len(choices[1].strip())]
    right = [float(per_byte[0] > per_byte[1]), float(per_byte[1] > per_byte[0])]
    assert [sample.scores["acc_norm"] for sample in result.samples] == right


def test_examples_that_fail_are_counted_and_left_out(folder: Path) -> None:
    examples = (
        ChoiceExample(id="good", context="a", choices=(" b", " c"), answer=0),
        ChoiceExample(id="bad", context="a", choices=(" b", ""), answer=0),
    )
    task = Task(name="mixed", version=1, description="one is bad", examples=examples)
    result = run_task(task, FolderModel(folder))
    assert result.num_failed == 1
    assert result.metrics["acc"].num_examples == 1
    assert result.samples[1].error == "continuation '' adds no token to its context"
    assert result.first_error == result.samples[1].error


def test_a_task_without_examples_is_named(folder: Path) -> None:
    empty: tuple[TextExample, ...] = ()
    task = Task(name="empty", version=1, description="nothing", examples=empty)
    with pytest.raises(EvalError, match="task empty has no examples"):
        run_task(task, FolderModel(folder))


def test_a_run_in_which_all_fails_keeps_its_errors(folder: Path, tmp_path: Path) -> None:
    narrow = tmp_path / "narrow"
    shutil.copytree(folder, narrow)
    config = json.loads((narrow / "config.json").read_text()) | {"max_position_embeddings": 16}
    (narrow / "config.json").write_text(json.dumps(config))
    with pytest.raises(EvalError, match=r"no example .* does not fit 16"):
        evaluate(model=narrow, tasks=["short_answers"], out=tmp_path / "out")
    rows = (tmp_path / "out" / "samples.jsonl").read_text().splitlines()
    assert len(rows) == 40
    assert all("does not fit" in json.loads(row)["error"] for row in rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "neither of --model and --base-url"),
        ({"base_url": "http://127.0.0.1:1"}, "both of --model and --base-url"),
        ({"tasks": []}, "no tasks"),
        ({"tasks": ["choices_small", "choices_small"]}, "name each once"),
        ({"tasks": ["choice_small"]}, "did you mean 'choices_small'"),
        ({"limit": 0}, "limit=0 leaves no examples"),
    ],
)
def test_wrong_requests_are_named(
    folder: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    arguments = {"model": folder, "tasks": ["choices_small"], "out": tmp_path / "out", **changes}
    with pytest.raises(EvalError, match=message):
        evaluate(**arguments)  # pyrefly: ignore


def test_results_are_not_overwritten_unasked(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(model=folder, tasks=["choices_small"], out=out, limit=2)
    with pytest.raises(OutputError, match="--overwrite"):
        evaluate(model=folder, tasks=["choices_small"], out=out, limit=2)
    evaluate(model=folder, tasks=["choices_small"], out=out, limit=2, overwrite=True)


def test_the_verb(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["eval", "run", "--model", str(folder), "--tasks", "choices_small", "--limit", "4"]
    assert main([*words, "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == str(out)
    assert printed.out.startswith("choices_small         acc")
    assert "eval" in printed.err
    assert main([*words, "--out", str(out), "--overwrite", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["results"]["choices_small"]["failed"] == 0
    assert main([*words, "--out", str(out)]) == 1
