"""One replica: an engine in a process of its own, and a box in which its deltas wait for transport.

Streams run in an event loop on a thread of their own, beside the engine's. What they bring leaves
through `batches`, an endless iterator that another thread reads: the deltas of a step leave
together, and when the other side is slow, those of several steps.
Not here: Ray, which carries calls and batches (cluster.py), and everything about other replicas.
"""

import asyncio
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from llmlab.errors import LabError, RequestError, ServerError
from llmlab.serve.async_engine import AsyncEngine
from llmlab.serve.deltas import Delta, EngineStats
from llmlab.serve.params import EngineConfig, SamplingParams
from llmlab.serve.streams import Stream

HEARTBEAT_S = 1.0
"""Seconds after which a batch comes even without deltas, so that counters stay fresh."""


@dataclass(frozen=True, slots=True)
class ReplicaInfo:
    """What a replica says of itself once its model is loaded."""

    pid: int
    max_model_len: int
    """Most tokens of prompt and answer together."""
    stats: EngineStats


@dataclass(frozen=True, slots=True)
class Job:
    """Requests with one prompt, on their way to a replica."""

    prompt_ids: Sequence[int]
    params: Mapping[int, SamplingParams]
    """How each is sampled, by a number that the sender chose and never uses again."""
    client: str = ""
    """Who asks, of those the engine is fair between."""
    is_streamed: bool = True
    """Whether someone reads the tokens as they come."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What a replica has produced since its last batch."""

    items: list[tuple[int, Delta]]
    """Request numbers with what came for them; the last delta of one refused has the error."""
    stats: EngineStats


class _Box:
    """Where what came for requests waits until the other side takes it; for two threads."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._items: list[tuple[int, Delta]] = []
        self._failure: ServerError | None = None

    def put(self, items: Sequence[tuple[int, Delta]]) -> None:
        """Add what came."""
        with self._news:
            self._items += items
            self._news.notify()

    def fail(self, error: ServerError) -> None:
        """Make every `take` raise an error."""
        with self._news:
            self._failure = error
            self._news.notify()

    def take(self) -> list[tuple[int, Delta]]:
        """Wait until there is something, for a second at most, and return all there is.

        Raises:
            ServerError: the one of `fail`.
        """
        with self._news:
            self._news.wait_for(lambda: self._items or self._failure, timeout=HEARTBEAT_S)
            if self._failure is not None:
                raise self._failure
            items, self._items = self._items, []
        return items


class _Streams:
    """The streams of a replica, in an event loop that a thread of their own runs.

    Args:
        engine: whose streams they are.
        box: takes what they bring.
    """

    def __init__(self, engine: AsyncEngine, box: _Box) -> None:
        self._engine = engine
        self._box = box
        self._closing = asyncio.Event()
        self._pulls: dict[int, asyncio.Task[None]] = {}
        self._outgoing: list[tuple[int, Delta]] = []
        running: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(running)), name="llmlab-streams", daemon=True
        )
        self._thread.start()
        self._loop = running.result()

    def call(self, method: Callable[..., None], *arguments: object) -> None:
        """Run a method in the loop, behind those before it; for other threads."""
        self._loop.call_soon_threadsafe(method, *arguments)

    def close(self) -> None:
        """End the loop and its thread; for other threads."""
        self.call(self._closing.set)
        self._thread.join()

    def start(self, job: Job) -> None:
        """Start requests; a refusal is sent like a delta."""
        opening = asyncio.create_task(self._open(job))
        for number in job.params:
            self._pulls[number] = asyncio.create_task(self._pull(number, opening))

    def stop(self, number: int) -> None:
        """Abort a request; one that is over is no error."""
        pull = self._pulls.pop(number, None)
        if pull is not None:
            pull.cancel()

    async def _serve(self, running: Future[asyncio.AbstractEventLoop]) -> None:
        running.set_result(asyncio.get_running_loop())
        await self._closing.wait()

    async def _open(self, job: Job) -> dict[int, Stream]:
        """Queue requests once their grammars are compiled; return the streams by number."""
        for params in {params.grammar: params for params in job.params.values()}.values():
            await self._engine.prepare(params)
        wanted = {n: params for n, params in job.params.items() if n in self._pulls}
        if not wanted:
            return {}
        streams = self._engine.streams(
            job.prompt_ids, [*wanted.values()], client=job.client, is_streamed=job.is_streamed
        )
        return dict(zip(wanted, streams, strict=True))

    async def _pull(self, number: int, opening: asyncio.Task[dict[int, Stream]]) -> None:
        try:
            streams = await asyncio.shield(opening)  # others wait for it, too
            async with streams[number] as stream:
                async for delta in stream:
                    self._put(number, delta)
        except RequestError as error:
            self._put(number, Delta(finish_reason="abort", error=error))
        except LabError as error:
            self._box.fail(ServerError(str(error)))
        finally:
            self._pulls.pop(number, None)

    def _put(self, number: int, delta: Delta) -> None:
        """Send a delta, together with what else comes in this round of the loop."""
        if not self._outgoing:
            self._loop.call_soon(self._send)
        self._outgoing.append((number, delta))

    def _send(self) -> None:
        self._box.put(self._outgoing)
        self._outgoing = []


class Replica:
    """An engine that is driven by calls which may come from another process.

    It has no coroutine: Ray would then run all its calls in one event loop, `batches` among them.

    Args:
        config: the engine's.
    """

    def __init__(self, config: EngineConfig) -> None:
        # Requests that were aborted count until the step they are in has ended, so the engine
        # takes more than whoever drives this will have open.
        self._config = replace(config, max_waiting=4 * (config.max_waiting + config.max_running))
        self._box = _Box()

    def load(self) -> ReplicaInfo:
        """Load the model; call it once, before anything else.

        Raises:
            LabError: as `Engine`.
        """
        self._engine = AsyncEngine(self._config)
        self._streams = _Streams(self._engine, self._box)
        return ReplicaInfo(
            pid=os.getpid(),
            max_model_len=self._engine.max_model_len,
            stats=self._engine.stats(),
        )

    def submit(self, job: Job) -> None:
        """Start requests."""
        self._streams.call(self._streams.start, job)

    def abort(self, number: int) -> None:
        """Stop a request and free its pages; one that is over is no error."""
        self._streams.call(self._streams.stop, number)

    def batches(self, count: int) -> Iterator[Batch]:
        """Yield news as they come, at least once a second.

        Args:
            count: batches after which the iterator ends; another one goes on where it stopped.

        Raises:
            ServerError: the engine failed; this replica is of no more use.
        """
        for _ in range(count):
            yield Batch(self._box.take(), self._engine.stats())

    def close(self) -> None:
        """Stop the engine and the threads, as the end of the process would."""
        self._engine.close()
        self._streams.close()
