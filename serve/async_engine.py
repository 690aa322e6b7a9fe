"""The engine on a thread of its own, for a server: requests stream their deltas to asyncio.

Not here: what a step does (engine.py), HTTP.
"""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from llmlab.serve.deltas import Delta, EngineStats
from llmlab.serve.params import EngineConfig, SamplingParams
from llmlab.tokenizers import Tokenizer


class Stream(AsyncIterator[Delta]):
    """The deltas of one request; `async for` ends after the delta with a finish_reason.

    Closing it (`await stream.aclose()`, leaving `async with`, cancelling the task that waits for
    a delta, or dropping the last reference) aborts the request and frees its pages.
    """

    async def __anext__(self) -> Delta:
        """Wait for the next delta.

        Raises:
            ServerError: the engine failed; every stream gets this error.
        """
        raise NotImplementedError

    async def __aenter__(self) -> "Stream":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Abort the request if it still runs; calling it twice does no harm."""
        raise NotImplementedError


class AsyncEngine:
    """An `Engine` that steps on its own thread while there is work, and sleeps otherwise.

    `with AsyncEngine(folder) as engine:` or `close()` when done. Every method may be called from
    the event loop: none waits for a step.

    Args:
        model: a model folder, or an `EngineConfig` that names one.
    """

    tokenizer: Tokenizer
    config: EngineConfig
    max_model_len: int
    """Most tokens of prompt and answer together."""

    def __init__(self, model: EngineConfig | Path | str) -> None:
        raise NotImplementedError

    def stream(self, prompt_ids: Sequence[int], params: SamplingParams) -> Stream:
        """Queue one request; call it from a running event loop.

        It validates and queues at once, before the first `await`, so that a refusal can still
        become an HTTP status.

        Raises:
            RequestError: the prompt is empty, has ids outside the vocabulary, or does not fit
                (status 400); the waiting queue is full (status 429).
            ServerError: the engine has stopped.
        """
        raise NotImplementedError

    @property
    def alive(self) -> bool:
        """False after `close()` or a failure in the step loop."""
        raise NotImplementedError

    def stats(self) -> EngineStats:
        """Return the counters as of the last step."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop the thread; open streams end with finish_reason "abort". May be called twice."""
        raise NotImplementedError
