"""What the HTTP layer needs of an engine, wherever it runs.

Two have it: `AsyncEngine`, on a thread of this process, and `ReplicaEngine`, in processes of their
own.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from llmlab.serve.deltas import EngineStats
from llmlab.serve.params import EngineConfig, SamplingParams
from llmlab.serve.streams import Stream
from llmlab.tokenizers import Tokenizer


class Backend(Protocol):
    """Runs requests beside an event loop; no method waits for a step."""

    config: EngineConfig
    """What the engine, or each of several, was started with."""
    tokenizer: Tokenizer
    max_model_len: int
    """Most tokens of prompt and answer together."""

    @property
    def adapters(self) -> Mapping[str, Path]:
        """Folders of the adapters that requests may name."""
        ...

    @property
    def alive(self) -> bool:
        """Whether requests can be answered."""
        ...

    def stats(self) -> EngineStats:
        """Return the counters."""
        ...

    async def prepare(self, params: SamplingParams) -> None:
        """Compile the grammar of a request, to be awaited before `streams`.

        Raises:
            RequestError: it does not compile (status 400).
            ServerError: the engine is closed.
        """
        ...

    def streams(
        self,
        prompt_ids: Sequence[int],
        params: Sequence[SamplingParams],
        *,
        adapter: str | None = None,
        client: str = "",
        is_streamed: bool = True,
    ) -> list[Stream]:
        """Queue several requests with one prompt; where one is refused, none is queued.

        Args:
            prompt_ids: the prompt of all.
            params: how each is sampled.
            adapter: name of a loaded adapter; None for the base model.
            client: who asks, of those the engine is fair between.
            is_streamed: whether someone reads the tokens as they come.

        Raises:
            RequestError: the model can never do it (status 400), or too many wait (status 429).
            ServerError: the engine has stopped.
        """
        ...
