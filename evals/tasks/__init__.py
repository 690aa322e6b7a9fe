"""The tasks, by name. Data written for this project lies beside this file as JSON lines.

A name may carry an argument after a colon (`bits_per_byte:notes.txt`); only some tasks take one.
"""

from collections.abc import Callable
from dataclasses import dataclass

from llmlab.errors import EvalError, did_you_mean
from llmlab.evals.task import Task
from llmlab.evals.tasks.bits_per_byte import bits_per_byte
from llmlab.evals.tasks.python_signatures import python_signatures
from llmlab.evals.tasks.written import choices_small, short_answers


@dataclass(frozen=True)
class TaskEntry:
    """How a task is made, from its argument (or None) and a seed."""

    make: Callable[[str | None, int], Task]
    argument: str | None = None
    """What the argument is, for messages; None when the task takes none."""


TASKS: dict[str, TaskEntry] = {
    "bits_per_byte": TaskEntry(bits_per_byte, "a file or folder of text"),
    "choices_small": TaskEntry(lambda argument, seed: choices_small()),
    "python_signatures": TaskEntry(lambda argument, seed: python_signatures(seed)),
    "short_answers": TaskEntry(lambda argument, seed: short_answers()),
}


def load_task(name: str, *, seed: int = 0) -> Task:
    """Return a task.

    Args:
        name: a key of `TASKS`, with an argument after a colon where the task takes one.
        seed: decides which examples a task draws; tasks with fixed examples ignore it.

    Raises:
        EvalError: no such task, or an argument for a task that takes none.
    """
    base, colon, argument = name.partition(":")
    if base not in TASKS:
        raise EvalError(f"no task {base!r}{did_you_mean(base, TASKS)}")
    entry = TASKS[base]
    if colon and (entry.argument is None or not argument):
        takes = f"takes {entry.argument}" if entry.argument else "takes no argument"
        raise EvalError(f"task {name!r}: {base} {takes}; write {base} alone or with one")
    return entry.make(argument or None, seed)
