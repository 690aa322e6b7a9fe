"""One request under way, as one JSON object or as the events of a stream.

Both are made of the same pieces: a `Choice` writes what each delta of the engine adds, a stream
sends the pieces, a whole answer joins them; so the two cannot differ.
Not here: what a piece looks like (`completions.py`, `chat_completions.py`), HTTP.
"""

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from llmlab.errors import RequestError
from llmlab.serve.backend import Backend
from llmlab.serve.choices import running_choices
from llmlab.serve.deltas import Delta
from llmlab.serve.params import SamplingParams
from llmlab.serve.structure import Structure

Piece = dict[str, Any]
"""An element of `choices` in a streamed chunk."""


class Choice(Protocol):
    """One choice of an answer: what the engine is asked, and the JSON of what it says."""

    @property
    def prompt_ids(self) -> Sequence[int]:
        """The prompt as the model reads it."""
        ...

    @property
    def params(self) -> SamplingParams:
        """How it is sampled."""
        ...

    def opening(self) -> list[Piece]:
        """Return what a stream sends before the first token."""
        ...

    def pieces(self, delta: Delta) -> list[Piece]:
        """Return what a delta adds; nothing for half a character."""
        ...

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """Join the pieces of this choice."""
        ...


@dataclass(frozen=True, kw_only=True)
class Form:
    """The words in which the two routes differ."""

    id_prefix: str
    whole: str
    chunk: str


class Answer:
    """The answer to one request.

    Args:
        engine: where it runs.
        choices: what to generate.
        form: the route's words.
        model: the name the request used.
        num_prompt_tokens: length of all prompts, each counted once however many choices it has.
        adapter: name of the adapter it asks for; None for the base model.
        client: who asks, of those the engine is fair between.
        structure: what the texts are to look like.
    """

    def __init__(
        self,
        engine: Backend,
        choices: Sequence[Choice],
        form: Form,
        *,
        model: str,
        num_prompt_tokens: int,
        adapter: str | None = None,
        client: str = "",
        structure: Structure | None = None,
    ) -> None:
        self._engine = engine
        self._adapter = adapter
        self._choices = choices
        self._form = form
        self._model = model
        self._id = f"{form.id_prefix}-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._num_prompt_tokens = num_prompt_tokens
        self._client = client
        self._structure = structure
        self._num_cached = 0
        self._num_generated = 0

    async def whole(self) -> dict[str, Any]:
        """Run to the end and return the JSON object."""
        pieces: list[list[Piece]] = [[] for _ in self._choices]
        async with aclosing(self._pieces(is_streamed=False)) as stream:
            async for index, piece in stream:
                pieces[index].append(piece)
        choices = [choice.whole(parts) for choice, parts in zip(self._choices, pieces, strict=True)]
        return {**self._frame(self._form.whole, choices), "usage": self._usage()}

    async def events(self, *, with_usage: bool) -> AsyncGenerator[dict[str, Any]]:
        """Yield the chunks of a stream.

        Args:
            with_usage: end with a chunk that has the token counts and no choice; the other chunks
                then say `"usage": null`.
        """
        usage = {"usage": None} if with_usage else {}
        async with aclosing(self._pieces(is_streamed=True)) as stream:
            async for _, piece in stream:
                yield {**self._frame(self._form.chunk, [piece]), **usage}
        if with_usage:
            yield {**self._frame(self._form.chunk, []), "usage": self._usage()}

    async def _pieces(self, *, is_streamed: bool) -> AsyncGenerator[tuple[int, Piece]]:
        try:
            async with aclosing(self._run(is_streamed)) as pieces:
                async for numbered in pieces:
                    yield numbered
        except RequestError as error:
            raise error if self._structure is None else self._structure.named(error) from error

    async def _run(self, is_streamed: bool) -> AsyncGenerator[tuple[int, Piece]]:
        requests = [(choice.prompt_ids, choice.params) for choice in self._choices]
        async with running_choices(
            self._engine,
            requests,
            adapter=self._adapter,
            client=self._client,
            is_streamed=is_streamed,
        ) as deltas:
            for index, choice in enumerate(self._choices):
                for piece in choice.opening():
                    yield index, piece
            async for index, delta in deltas:
                self._num_cached += delta.num_cached_tokens
                self._num_generated += len(delta.token_ids)
                for piece in self._choices[index].pieces(delta):
                    yield index, piece

    def _frame(self, kind: str, choices: Sequence[Piece]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "choices": list(choices),
        }

    def _usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self._num_prompt_tokens,
            "completion_tokens": self._num_generated,
            "total_tokens": self._num_prompt_tokens + self._num_generated,
            "prompt_tokens_details": {"cached_tokens": self._num_cached},
        }
