"""`evaluate`: load a model, run tasks, write a results folder.

Not here: how a task is scored (scoring.py), how results look (report.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmlab.errors import EvalError
from llmlab.evals.folder_model import FolderModel
from llmlab.evals.models import EvalModel
from llmlab.evals.report import write_results
from llmlab.evals.results import Results
from llmlab.evals.scoring import run_task
from llmlab.evals.task import Task
from llmlab.evals.tasks import load_task
from llmlab.evals.url_model import UrlModel
from llmlab.outputs import check_free
from llmlab.track import OnProgress, silent


def evaluate(
    *,
    model: Path | str | None = None,
    base_url: str | None = None,
    api_key: str | None = None,
    tasks: Sequence[str],
    out: Path | str,
    limit: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    on_progress: OnProgress = silent,
) -> Results:
    """Score a model folder or a URL on tasks and write a results folder.

    Args:
        model: model folder; give this or `base_url`.
        base_url: OpenAI-style server, such as http://127.0.0.1:8000/v1.
        api_key: for a server that asks for one.
        tasks: names, such as `choices_small` or `bits_per_byte:notes.txt`.
        out: where the results folder shall appear.
        limit: examples a task at most, the first ones.
        seed: of the bootstrap and of tasks that draw examples.
        overwrite: replace an existing results folder.
        on_progress: told task, requests and finished numbers.

    Raises:
        EvalError: both or neither of `model` and `base_url`, an unknown task, or nothing could be
            scored (the folder is written all the same, with the errors).
        ModelError: no usable model folder.
        ServerError: nothing usable answers at the URL.
        OutputError: `out` exists and `overwrite` is false.
    """
    loaded = _tasks(tasks, limit, seed)
    check_free(out, overwrite=overwrite)
    found = []
    with _model(model, base_url, api_key) as scored:
        for task in loaded:
            result = run_task(task, scored, seed=seed, on_progress=_named(task, on_progress))
            found.append(result)
            on_progress({"note": f"{task.name} done in {result.wall_s:.1f} s"})
    results = Results(
        model=scored.name,
        model_fingerprint=scored.fingerprint,
        tasks=tuple(found),
        config={
            "model": str(model) if model is not None else None,
            "base_url": base_url,
            "tasks": list(tasks),
            "limit": limit,
            "seed": seed,
        },
        out=Path(out),
    )
    write_results(results, overwrite=overwrite)
    if not results.rows():
        raise EvalError(
            f"no example of any task could be scored; the first error: {found[0].first_error} "
            f"(all of them are in {results.out}/samples.jsonl)"
        )
    return results


def _tasks(names: Sequence[str], limit: int | None, seed: int) -> list[Task]:
    if not names:
        raise EvalError("no tasks; name at least one with --tasks")
    if len(set(names)) < len(names):
        raise EvalError(f"tasks={list(names)} names one twice; name each once")
    if limit is not None and limit < 1:
        raise EvalError(f"limit={limit} leaves no examples; use at least 1")
    return [load_task(name, seed=seed).first(limit) for name in names]


@contextmanager
def _model(
    folder: Path | str | None, base_url: str | None, api_key: str | None
) -> Iterator[EvalModel]:
    if folder is not None and base_url is None:
        yield FolderModel(folder)
    elif base_url is not None and folder is None:
        with UrlModel(base_url, api_key=api_key) as model:
            yield model
    else:
        given = "both" if folder is not None else "neither"
        raise EvalError(f"{given} of --model and --base-url given; give one of them")


def _named(task: Task, on_progress: OnProgress) -> OnProgress:
    def tell(values: Mapping[str, Any]) -> None:
        on_progress({"task": task.name, **values})

    return tell
