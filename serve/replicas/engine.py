"""`ReplicaEngine`: what the HTTP layer sees of several replicas, the same as it sees of one engine.

A thread of its own runs the event loop in which the replicas are driven. Streams hand it commands
(`call_soon_threadsafe`), and it hands deltas back with one call into each server's loop.
Not here: what the commands do (crew.py), Ray (cluster.py), the model: this process has its
tokenizer and config, tries grammars, and has no weights.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Self

from llmlab.errors import LabError, RequestError, ServerError
from llmlab.model import load_config
from llmlab.serve.deltas import Delta, EngineStats
from llmlab.serve.grammar.compiler import GrammarCompiler
from llmlab.serve.limits import Limits
from llmlab.serve.params import EngineConfig, SamplingParams
from llmlab.serve.replicas.crew import Crew, Letters, ReplicaHandle
from llmlab.serve.replicas.replica import Job, ReplicaInfo
from llmlab.serve.streams import Letter, Mailbox, Stream, post
from llmlab.tokenizers import Tokenizer

logger = logging.getLogger(__name__)


class ReplicaEngine:
    """Replicas of one model behind the methods of an `AsyncEngine`.

    A replica that dies is replaced, at most three times in a minute. Requests that had no token
    yet are given to another one; those in the middle of their answer end with a `ServerError`.
    Every method but `close` may be called from the event loop: none waits for a replica.

    Args:
        config: what each replica's engine is started with: limits and cache are those of one.
        start: starts the process of one replica and returns before its model is loaded.
        num_replicas: how many to keep running.

    Raises:
        ModelError: the folder is no model folder; told before a replica starts.
        LabError: a replica could not load the model, or died.
    """

    def __init__(
        self, config: EngineConfig, start: Callable[[], ReplicaHandle], num_replicas: int
    ) -> None:
        self.config = config
        self.model_config = load_config(config.model)
        self.tokenizer = Tokenizer.load(config.model)
        self._grammars = GrammarCompiler(self.tokenizer, stop_ids=self.model_config.eos_token_ids)
        self._capacity = config.max_running + config.max_waiting
        self._most_open = num_replicas * self._capacity
        self._crew = Crew(
            start,
            num_replicas=num_replicas,
            capacity=self._capacity,
            page_len=config.page_len,
            emit=self._emit,
        )
        # Reentrant: a stream collected while it is held can still abort.
        self._lock = threading.RLock()
        self._open: dict[Mailbox, int] = {}  # guarded by _lock, as the next three
        self._mailboxes: dict[int, Mailbox] = {}
        self._is_over = False
        self._failure: ServerError | None = None
        self._numbers = count()
        self._loop = asyncio.new_event_loop()
        ready: Future[ReplicaInfo] = Future()
        self._work = self._loop.create_task(self._run(ready))
        self._thread = threading.Thread(target=self._drive, name="llmlab-replicas", daemon=True)
        self._thread.start()
        try:
            self.max_model_len: int = ready.result().max_model_len
            """Most tokens of prompt and answer together."""
        except BaseException:
            self.close()
            raise
        self._limits = Limits(self.tokenizer.vocab_size, self.max_model_len)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def prepare(self, params: SamplingParams) -> None:
        """Check the grammar of a request; nothing to do where it has none.

        Await it before `stream` or `streams`, for a refusal to become an HTTP status. The replica
        that gets the request compiles the grammar again.

        Raises:
            RequestError: as `AsyncEngine.prepare`.
            ServerError: the engine is closed.
            MissingExtraError: the grammar library is not installed.
        """
        if params.grammar is not None:
            await asyncio.wrap_future(self._grammars.submit(params.grammar))

    def stream(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        adapter: str | None = None,
        client: str = "",
        is_streamed: bool = True,
    ) -> Stream:
        """Queue one request; call it from a running event loop.

        It validates and queues at once, before the first `await`, so that a refusal can still
        become an HTTP status. The arguments are those of `AsyncEngine.stream`.

        Raises:
            RequestError: as `streams`.
            ServerError: the engine is closed, or no replica is left.
        """
        return self.streams(
            prompt_ids, [params], adapter=adapter, client=client, is_streamed=is_streamed
        )[0]

    def streams(
        self,
        prompt_ids: Sequence[int],
        params: Sequence[SamplingParams],
        *,
        adapter: str | None = None,
        client: str = "",
        is_streamed: bool = True,
    ) -> list[Stream]:
        """Queue several requests with one prompt, which go to one replica.

        The arguments are those of `AsyncEngine.streams`. Where one is refused, none is queued.

        Raises:
            RequestError: as `AsyncEngine.streams`; there are more than one replica holds (status
                400); all replicas together have as many as they may (status 429).
            ServerError: the engine is closed, or no replica is left.
        """
        if adapter is not None:
            raise RequestError(f"no adapter {adapter!r}: replicas have none", status=404)
        self._limits.check(prompt_ids, *params)
        if len(params) > self._capacity:
            raise RequestError(
                f"{len(params)} requests have one prompt and a replica holds {self._capacity}; "
                "send fewer at a time",
                param="n",
            )
        mailboxes = [Mailbox.here() for _ in params]
        with self._lock:
            if self._is_over:
                raise self._failure or ServerError("the engine is closed; start the server again")
            if len(self._open) + len(mailboxes) > self._most_open:
                raise RequestError(
                    f"{len(self._open)} requests run or wait already; try again later", status=429
                )
            numbers = [next(self._numbers) for _ in mailboxes]
            self._open.update(zip(mailboxes, numbers, strict=True))
            self._mailboxes.update(zip(numbers, mailboxes, strict=True))
            by_number = dict(zip(numbers, params, strict=True))
            self._tell(self._crew.submit, Job(list(prompt_ids), by_number, client, is_streamed))
        return [Stream(mailbox, self._abort) for mailbox in mailboxes]

    @property
    def adapters(self) -> dict[str, Path]:
        """None: what is loaded into one replica is not in the others."""
        return {}

    @property
    def alive(self) -> bool:
        """True while at least one replica has its model and runs."""
        return not self._is_over and self._crew.stats().replicas > 0

    def stats(self) -> EngineStats:
        """Return the counters of the living replicas, added up, up to a second old."""
        stats = self._crew.stats()
        return replace(stats, waiting=max(0, len(self._open) - stats.running))

    def close(self) -> None:
        """End the replicas; open streams end with finish_reason "abort". May be called twice."""
        with self._lock:
            if not self._is_over:
                self._tell(self._work.cancel)
        self._thread.join()
        self._grammars.close()

    def _tell(self, command: Callable[..., object], *arguments: object) -> None:
        """Run a command in the replicas' loop, behind those told before; needs the lock."""
        self._loop.call_soon_threadsafe(command, *arguments)

    def _abort(self, mailbox: Mailbox) -> None:
        with self._lock:
            number = self._open.pop(mailbox, None)
            if number is not None:
                del self._mailboxes[number]
                self._tell(self._crew.abort, number)

    # What follows runs on the replicas' thread.

    def _drive(self) -> None:
        self._loop.run_until_complete(self._work)
        self._loop.close()

    async def _run(self, ready: Future[ReplicaInfo]) -> None:
        """Keep the replicas running until `close`, or until it makes no sense any more."""
        failure = None
        try:
            await self._crew.run(ready.set_result)
        except asyncio.CancelledError:
            if not ready.done():
                ready.cancel()
        except Exception as error:
            # Whatever happens, the streams must hear of it: nobody else will tell them.
            if not ready.done():
                ready.set_exception(error)
            elif isinstance(error, LabError):
                failure = ServerError(f"{error}; start it again")
            else:
                logger.exception("the replicas cannot go on")
                failure = ServerError(f"the replicas stopped: {error!r}; start the server again")
        with self._lock:
            self._is_over, self._failure = True, failure
            last = failure or Delta(finish_reason="abort")
            self._emit([(number, last) for number in list(self._mailboxes)])

    def _emit(self, letters: Letters) -> None:
        """Put letters into their mailboxes."""
        own: list[Letter] = []
        with self._lock:
            for number, item in letters:
                mailbox = self._mailboxes.get(number)
                if mailbox is None:
                    continue
                own.append((mailbox, item))
                if isinstance(item, ServerError) or item.finish_reason is not None:
                    del self._mailboxes[number], self._open[mailbox]
        for mailbox in post(own):
            self._abort(mailbox)
