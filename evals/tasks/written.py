"""The tasks whose questions were written for this project: choices_small and short_answers.

They are small on purpose: they tell a working model from a broken one in seconds, and their error
bars say how little more they can tell. A pattern found anywhere in an answer counts, so a rambling
answer can be right by luck. The questions lie beside this file as JSON lines.
"""

import json
from pathlib import Path
from typing import Any

from llmlab.evals.task import AnswerExample, ChoiceExample, Task

CHOICES_VERSION = 1
ANSWERS_VERSION = 1


def choices_small() -> Task:
    """Make choices_small: general knowledge, common sense and Python, four choices each."""
    examples = tuple(
        ChoiceExample(
            id=row["id"],
            context=f"Question: {row['question']}\nAnswer:",
            choices=tuple(f" {choice}" for choice in row["choices"]),
            answer=row["answer"],
        )
        for row in _rows("choices_small.jsonl")
    )
    return Task(
        name="choices_small",
        version=CHOICES_VERSION,
        description="four-choice questions on general knowledge, common sense and Python",
        examples=examples,
    )


def short_answers() -> Task:
    """Make short_answers: questions with a one-line answer, checked by regular expressions."""
    examples = tuple(
        AnswerExample(
            id=row["id"],
            message=row["question"],
            prompt=f"Question: {row['question']}\nAnswer:",
            accept=tuple(row["accept"]),
        )
        for row in _rows("short_answers.jsonl")
    )
    return Task(
        name="short_answers",
        version=ANSWERS_VERSION,
        description="questions with a short answer, generated at temperature 0",
        examples=examples,
    )


def _rows(name: str) -> list[dict[str, Any]]:
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
