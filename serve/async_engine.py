"""The engine on a thread of its own, for a server: requests stream their deltas to asyncio.

The event loop and the thread share an inbox (what to start, what to abort) and nothing else; the
thread hands the deltas of a step back with one call into the loop (streams.py). Not here: what a
step does (engine.py), HTTP.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self

from llmlab.errors import LabError, RequestError, ServerError
from llmlab.serve.deltas import Delta, EngineStats
from llmlab.serve.engine import Engine
from llmlab.serve.params import EngineConfig, SamplingParams
from llmlab.serve.streams import Letter, Mailbox, Stream, post

logger = logging.getLogger(__name__)


class AsyncEngine:
    """An `Engine` that steps on its own thread while there is work, and sleeps otherwise.

    `with AsyncEngine(folder) as engine:` or `close()` when done. Every method but `close` may be
    called from the event loop: none waits for a step.

    Args:
        model: a model folder, or an `EngineConfig` that names one.

    Raises:
        ModelError: the folder is no model folder.
        ConfigError: as `Engine`.
    """

    def __init__(self, model: EngineConfig | Path | str) -> None:
        # On a thread that ends: the workers OpenMP gives to a thread stay as long as it does, and
        # with more workers than cores they sleep between operators, which halves the speed.
        with ThreadPoolExecutor(max_workers=1) as loader:
            self._engine = loader.submit(Engine, model).result()
        self.config = self._engine.config
        self.model_config = self._engine.model_config
        self.tokenizer = self._engine.tokenizer
        self.max_model_len = self._engine.max_model_len
        """Most tokens of prompt and answer together."""
        # A Condition's lock is reentrant: a stream collected while it is held can still abort.
        self._wake = threading.Condition()
        self._inbox: list[Callable[[], None]] = []  # guarded by _wake, as the next three
        self._open: set[Mailbox] = set()
        self._stopping = False
        self._failure: ServerError | None = None
        self._numbers: dict[Mailbox, int] = {}  # of the thread alone, as the next one
        self._mailboxes: dict[int, Mailbox] = {}
        self._thread = threading.Thread(target=self._run, name="llmlab-engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def prepare(self, params: SamplingParams) -> None:
        """Compile the grammar of a request while others run; nothing to do where it has none.

        Await it before `stream` or `streams`: these compile a grammar on the engine's thread, which
        takes about 1 ms after this and holds up every stream for seconds where it is a hard one.

        Raises:
            RequestError: the grammar does not compile, or takes more time or memory than it may
                (status 400).
            ServerError: the engine is closed.
            MissingExtraError: the grammar library is not installed.
        """
        if params.grammar is not None:
            await asyncio.wrap_future(self._engine.grammars.submit(params.grammar))

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
        become an HTTP status. The arguments are those of `Engine.submit`.

        Raises:
            RequestError: as `streams`.
            ServerError: the engine has stopped.
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
        """Queue several requests with one prompt, as `stream` does one.

        The arguments are those of `Engine.submit_group`. Where one is refused, none is queued.

        Raises:
            RequestError: the prompt is empty, has ids outside the vocabulary, or does not fit
                (status 400); there is no such adapter (status 404); the waiting queue is full
                (status 429).
            ServerError: the engine has stopped.
        """
        self._engine.check(prompt_ids, *params, adapter=adapter)
        mailboxes = [Mailbox.here() for _ in params]
        submit = partial(
            self._engine.submit_group,
            list(prompt_ids),
            list(params),
            adapter=adapter,
            client=client,
            is_streamed=is_streamed,
        )
        with self._wake:
            if not self.alive:
                raise self._failure or ServerError("the engine is closed; start the server again")
            most = self.config.max_running + self.config.max_waiting
            if len(self._open) + len(mailboxes) > most:
                raise RequestError(
                    f"{len(self._open)} requests run or wait already; try again later", status=429
                )
            self._open.update(mailboxes)
            self._inbox.append(partial(self._start, mailboxes, submit))
            self._wake.notify()
        return [Stream(mailbox, self._abort) for mailbox in mailboxes]

    @property
    def adapters(self) -> dict[str, Path]:
        """Folders of the adapters that requests may name."""
        return self._engine.adapters

    async def load_adapter(self, name: str, folder: Path | str) -> None:
        """Load an adapter beside the running steps; raises as `Engine.load_adapter`."""
        await asyncio.to_thread(self._engine.load_adapter, name, folder)

    def unload_adapter(self, name: str) -> None:
        """Refuse new requests for an adapter; raises as `Engine.unload_adapter`."""
        self._engine.unload_adapter(name)

    @property
    def alive(self) -> bool:
        """False after `close()` or a failure in the step loop."""
        return not self._stopping and self._failure is None

    def stats(self) -> EngineStats:
        """Return the counters as of the last step."""
        stats = self._engine.stats()
        return replace(stats, waiting=max(0, len(self._open) - stats.running))

    def close(self) -> None:
        """Stop the thread; open streams end with finish_reason "abort". May be called twice."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()
        self._engine.close()

    def _abort(self, mailbox: Mailbox) -> None:
        with self._wake:
            if mailbox in self._open:
                self._inbox.append(partial(self._forget, mailbox))
                self._wake.notify()

    # What follows runs on the engine's thread.

    def _run(self) -> None:
        reason = None
        try:
            while self._next_commands():
                self._deliver(self._engine.step())
        except Exception as error:
            # Whatever a step can raise, the streams must hear of it: nobody else will tell them.
            logger.exception("the engine stopped")
            reason = f"the engine stopped: {type(error).__name__}: {error}; start the server again"
        with self._wake:
            self._failure = None if reason is None else ServerError(reason)
            left = list(self._open)
        last = Delta(finish_reason="abort")
        self._send([(mailbox, ServerError(reason) if reason else last) for mailbox in left])
        for mailbox in left:
            self._forget(mailbox)

    def _next_commands(self) -> bool:
        """Wait for work and carry out what the inbox says; False when it is time to stop."""
        with self._wake:
            self._wake.wait_for(lambda: self._inbox or self._engine.has_work or self._stopping)
            commands, self._inbox = self._inbox, []
            if self._stopping:
                return False
        for command in commands:
            command()
        return True

    def _start(self, mailboxes: list[Mailbox], submit: Callable[[], list[int]]) -> None:
        try:
            numbers = submit()
        except LabError as error:  # a grammar, or an adapter that went since they were queued
            last = ServerError(str(error))
            if isinstance(error, RequestError):
                last = Delta(finish_reason="abort", error=error)
            for mailbox in mailboxes:
                self._forget(mailbox)
            self._send([(mailbox, last) for mailbox in mailboxes])
            return
        for mailbox, number in zip(mailboxes, numbers, strict=True):
            self._numbers[mailbox], self._mailboxes[number] = number, mailbox

    def _forget(self, mailbox: Mailbox) -> None:
        number = self._numbers.pop(mailbox, None)
        if number is not None:
            del self._mailboxes[number]
            self._engine.abort(number)
        with self._wake:
            self._open.discard(mailbox)

    def _deliver(self, deltas: list[tuple[int, Delta]]) -> None:
        letters = [(self._mailboxes[number], delta) for number, delta in deltas]
        for mailbox, delta in letters:
            if delta.finish_reason is not None:
                self._forget(mailbox)
        self._send(letters)

    def _send(self, letters: Sequence[Letter]) -> None:
        for mailbox in post(letters):
            self._forget(mailbox)
