"""The tasks: fixed, well formed, told apart by their fingerprints."""

import re
from pathlib import Path

import pytest

from llmlab.data.config import PackConfig
from llmlab.data.packing import is_held_out
from llmlab.data.stdlib import read_source, stdlib_root
from llmlab.errors import DataError, EvalError
from llmlab.evals.task import AnswerExample, ChoiceExample, Task, TextExample
from llmlab.evals.tasks import TASKS, load_task
from llmlab.evals.tasks.bits_per_byte import passages


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    return {name: load_task(name) for name in TASKS}


def test_every_task_has_distinct_examples_of_one_kind(tasks: dict[str, Task]) -> None:
    for task in tasks.values():
        assert len({type(example) for example in task.examples}) == 1
        assert len({example.id for example in task.examples}) == len(task.examples) > 8


def test_choices_are_distinct_and_the_answers_do_not_favour_a_place(
    tasks: dict[str, Task],
) -> None:
    for name in ("choices_small", "python_signatures"):
        examples = [e for e in tasks[name].examples if isinstance(e, ChoiceExample)]
        assert all(len(set(e.choices)) == 4 and 0 <= e.answer < 4 for e in examples)
        assert all(choice.startswith(" ") for e in examples for choice in e.choices)
        places = [sum(e.answer == place for e in examples) for place in range(4)]
        assert max(places) < 0.4 * len(examples)
    assert len(tasks["choices_small"].examples) == 60


def test_patterns_of_answers_match_what_they_should(tasks: dict[str, Task]) -> None:
    answers = {e.id: e for e in tasks["short_answers"].examples if isinstance(e, AnswerExample)}
    assert len(answers) == 40
    paris = answers["short-01"].accept
    assert any(re.search(p, "The capital of France is Paris.", re.IGNORECASE) for p in paris)
    assert not any(re.search(p, "Comparison", re.IGNORECASE) for p in paris)
    for example in answers.values():
        assert not any(re.search(p, "", re.IGNORECASE) for p in example.accept)


def test_signatures_are_of_one_module_and_drawn_by_the_seed(tasks: dict[str, Task]) -> None:
    task = tasks["python_signatures"]
    assert len(task.examples) == 200
    for example in task.examples:
        assert isinstance(example, ChoiceExample)
        assert all(f" def {example.cluster}." in choice for choice in example.choices)
    assert load_task("python_signatures", seed=0).fingerprint == task.fingerprint
    assert load_task("python_signatures", seed=1).fingerprint != task.fingerprint


def test_the_default_text_is_what_packing_holds_out(tasks: dict[str, Task]) -> None:
    fraction = PackConfig.__dataclass_fields__["val_fraction"].default
    files = {e.cluster for e in tasks["bits_per_byte"].examples if isinstance(e, TextExample)}
    for name in files:
        assert name is not None
        assert is_held_out(read_source(stdlib_root() / name).encode(), fraction)


def test_text_of_ones_own_is_cut_into_passages_and_nothing_is_lost(tmp_path: Path) -> None:
    text = "".join(f"line {number} of some length\n" for number in range(2000))
    path = tmp_path / "notes.txt"
    path.write_text(text)
    task = load_task(f"bits_per_byte:{path}")
    texts = [example.text for example in task.examples if isinstance(example, TextExample)]
    assert "".join(texts) == text
    assert all(0 < len(passage) <= 8192 and passage.endswith("\n") for passage in texts)
    assert "".join(passages("x" * 20_000)) == "x" * 20_000


def test_a_changed_example_changes_the_fingerprint(tasks: dict[str, Task]) -> None:
    task = tasks["choices_small"]
    assert task.first(59).fingerprint != task.fingerprint
    assert task.first(None).fingerprint == task.fingerprint


def test_unknown_tasks_and_wrong_arguments_are_named() -> None:
    with pytest.raises(EvalError, match=r"no task 'choices'; did you mean 'choices_small'\?"):
        load_task("choices")
    with pytest.raises(EvalError, match="takes no argument"):
        load_task("choices_small:x")
    with pytest.raises(EvalError, match="takes a file or folder of text"):
        load_task("bits_per_byte:")
    with pytest.raises(DataError, match=r"nowhere\.txt"):
        load_task("bits_per_byte:nowhere.txt")
