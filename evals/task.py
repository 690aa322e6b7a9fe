"""A task: examples, how they are scored, a version and a fingerprint.

Tasks are data. Three kinds, each with its own examples: `choice` (which of a few continuations is
most likely), `text` (how likely is a text), `answer` (generate, then match). Not here: the tasks
themselves (tasks/), scoring (scoring.py).
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ChoiceExample:
    """A question whose right answer shall be the likeliest continuation."""

    id: str
    context: str
    """What comes before each choice."""
    choices: tuple[str, ...]
    """Continuations, with their leading space where there is one."""
    answer: int
    """Index of the right one."""
    cluster: str | None = None
    """Examples with the same cluster are not independent; None stands alone."""


@dataclass(frozen=True, kw_only=True)
class TextExample:
    """A text whose likelihood is measured."""

    id: str
    text: str
    cluster: str | None = None
    """As for choices: passages of one file, say."""


@dataclass(frozen=True, kw_only=True)
class AnswerExample:
    """A question to answer in free text."""

    id: str
    message: str
    """What a user says in a chat."""
    prompt: str
    """The same as a text to continue."""
    accept: tuple[str, ...]
    """Regular expressions, case ignored; the answer is right when one is found in it."""
    max_tokens: int = 32
    stop: tuple[str, ...] = ("\n",)


Example = ChoiceExample | TextExample | AnswerExample


@dataclass(frozen=True, kw_only=True)
class Task:
    """Examples of one kind.

    `version` grows whenever examples or scoring change, for numbers of two versions must not be
    compared; the fingerprint catches what a version forgot.
    """

    name: str
    version: int
    description: str
    examples: Sequence[ChoiceExample] | Sequence[TextExample] | Sequence[AnswerExample]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the version and all examples, in their order."""
        digest = hashlib.sha256(f"{self.name}\0{self.version}\0".encode())
        for example in self.examples:
            digest.update(example_hash(example).encode())
        return digest.hexdigest()

    def first(self, limit: int | None) -> "Task":
        """Return the task with its first `limit` examples; all when None."""
        return dataclasses.replace(self, examples=tuple(self.examples)[:limit])


def example_hash(example: Example) -> str:
    """SHA-256 of what an example asks and expects."""
    content = {"kind": type(example).__name__, **dataclasses.asdict(example)}
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
