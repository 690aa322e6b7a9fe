"""The three calls a task makes on a model, and what goes in and comes out.

Two models answer them: FolderModel (folder_model.py) in this process, UrlModel (url_model.py) over
HTTP. Not here: how text becomes scored tokens (windows.py), tasks, metrics.

A call never loses finished examples to a bad one: an example that could not be scored comes back
as a `Failure`, in its place, and is counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from llmlab.track import OnProgress


@dataclass(frozen=True)
class Loglikelihood:
    """How likely a continuation is after its context."""

    logprob: float
    """Sum over the continuation's tokens of ln p(token | everything before it)."""
    is_greedy: bool
    """Whether each of them was the most likely token."""
    num_tokens: int
    """Tokens of the continuation."""


@dataclass(frozen=True)
class TextLogprob:
    """How likely a whole text is."""

    logprob: float
    """Sum over all its tokens of ln p(token | the tokens before it in its window)."""
    num_tokens: int
    """Tokens scored: all of the text's."""
    num_bytes: int
    """UTF-8 bytes of the text."""


@dataclass(frozen=True)
class Failure:
    """An example that could not be scored."""

    error: str
    """What went wrong."""


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """A text to generate, greedily, in the form the model was made for."""

    message: str
    """What a user says, for a model with a chat template."""
    prompt: str
    """The same as a text to continue, for a model without one."""
    max_tokens: int
    """Most tokens to generate."""
    stop: tuple[str, ...] = ()
    """Strings that end the text when `prompt` is continued; in a chat the turn ends by itself."""


class EvalModel(Protocol):
    """A model that can be scored."""

    name: str
    """For people: the folder or the served name."""
    fingerprint: str
    """Hex digest that differs when the numbers could; keys results."""

    def loglikelihood(
        self, pairs: Sequence[tuple[str, str]], *, on_progress: OnProgress
    ) -> list[Loglikelihood | Failure]:
        """Score (context, continuation) pairs, in order."""
        ...

    def loglikelihood_rolling(
        self, texts: Sequence[str], *, on_progress: OnProgress
    ) -> list[TextLogprob | Failure]:
        """Score whole texts, in order; long ones in windows."""
        ...

    def generate(
        self, requests: Sequence[GenerateRequest], *, on_progress: OnProgress
    ) -> list[str | Failure]:
        """Answer requests, in order, at temperature 0."""
        ...
