"""The replicas at work: each is started, fed, listened to, and replaced when it dies.

Everything here runs in one event loop, so nothing is locked. Each place has a task that listens
to its replica; when that fails the replica is gone, whatever the reason was, and the next one is
started in its place.
Not here: who gets what (dispatch.py), streams and other threads (engine.py), what a handle does
(cluster.py).
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import NoReturn, Protocol

from llmlab.errors import LabError, ServerError
from llmlab.serve.deltas import Delta, EngineStats
from llmlab.serve.replicas.dispatch import Dispatcher, Restarts
from llmlab.serve.replicas.replica import Batch, Job, ReplicaInfo
from llmlab.serve.replicas.router import PrefixRouter

logger = logging.getLogger(__name__)

Letters = Sequence[tuple[int, Delta | ServerError]]
"""What came for which request."""


class ReplicaHandle(Protocol):
    """A `Replica` in another process; every call but `kill` may find it dead."""

    async def load(self) -> ReplicaInfo:
        """Load the model.

        Raises:
            LabError: the model cannot be loaded, or the replica died.
        """
        ...

    async def listen(self, deliver: Callable[[Batch], None]) -> NoReturn:
        """Hand over batches as they come, in this event loop, until there will be no more.

        Raises:
            LabError: the replica died, or its engine failed.
        """
        ...

    def submit(self, job: Job) -> None:
        """Send requests; a dead replica swallows them, and `listen` tells."""
        ...

    def abort(self, number: int) -> None:
        """Take a request back."""
        ...

    def kill(self) -> None:
        """End the process; calling it twice does no harm."""
        ...


class Crew:
    """All replicas of one model.

    Args:
        start: starts the process of one replica and returns before its model is loaded.
        num_replicas: how many to keep running.
        capacity: most requests that one of them may have.
        page_len: tokens per page of their caches.
        emit: takes what came for requests, in order; an error is the last thing that comes.
    """

    def __init__(
        self,
        start: Callable[[], ReplicaHandle],
        *,
        num_replicas: int,
        capacity: int,
        page_len: int,
        emit: Callable[[Letters], None],
    ) -> None:
        self._start = start
        self._num_replicas = num_replicas
        self._capacity = capacity
        self._emit = emit
        self._dispatcher = Dispatcher(PrefixRouter(page_len=page_len))
        self._requests: dict[int, Job] = {}
        self._handles: dict[int, ReplicaHandle] = {}  # by place; a dead replica has none
        self._stats: dict[int, EngineStats] = {}

    async def run(self, on_ready: Callable[[ReplicaInfo], None]) -> None:
        """Start the replicas and keep them running until cancelled; no process is left then.

        Args:
            on_ready: called once, when each has loaded its model, with what one of them says.

        Raises:
            LabError: a replica could not load the model at the start.
            ServerError: all are dead and none may be replaced any more.
        """
        handles = [self._start() for _ in range(self._num_replicas)]
        loads = [asyncio.create_task(handle.load()) for handle in handles]
        try:
            infos = await asyncio.gather(*loads)
        except BaseException:
            for handle in handles:
                handle.kill()
            await asyncio.wait(loads)
            raise
        for place, (handle, info) in enumerate(zip(handles, infos, strict=True)):
            self._up(place, handle, info)
        on_ready(infos[0])
        async with asyncio.TaskGroup() as group:
            for place, handle in enumerate(handles):
                group.create_task(self._keep(place, handle))
        raise ServerError("every replica died again and again; the server's log says why")

    def submit(self, job: Job) -> None:
        """Give requests to a replica, or let them wait until one has room; numbers grow."""
        self._requests.update(dict.fromkeys(job.params, job))
        first = next(iter(job.params.values()))
        self._dispatcher.add([*job.params], job.prompt_ids, root=first.cache_salt)
        self._place()

    def abort(self, number: int) -> None:
        """Forget a request; one that is over is no error."""
        if number in self._requests:
            replica = self._forget(number)
            if replica is not None:
                self._handles[replica].abort(number)
            self._place()

    def stats(self) -> EngineStats:
        """Return the counters of the living replicas, added up; safe to call from any thread.

        None is much more than a second old. What a replica counted dies with it.
        """
        every = list(self._stats.values())
        names = [field.name for field in fields(EngineStats)]
        return EngineStats(**{name: sum(getattr(one, name) for one in every) for name in names})

    async def _keep(self, place: int, handle: ReplicaHandle) -> None:
        """Run one replica after another in a place, until too many have died there."""
        restarts = Restarts()
        while True:
            try:
                if place not in self._handles:
                    self._up(place, handle, await handle.load())
                await handle.listen(partial(self._deliver, place))
            except LabError as error:
                logger.error("replica %d is gone: %s", place, error)
            finally:
                handle.kill()
            self._down(place)
            if not restarts.allow(time.monotonic()):
                logger.error("replica %d is not replaced: it died too often", place)
                return
            handle = self._start()

    def _up(self, place: int, handle: ReplicaHandle, info: ReplicaInfo) -> None:
        logger.info("replica %d is ready: process %d", place, info.pid)
        self._handles[place], self._stats[place] = handle, info.stats
        self._dispatcher.add_replica(place, capacity=self._capacity, max_pages=info.stats.num_pages)
        self._place()

    def _down(self, place: int) -> None:
        self._handles.pop(place, None)
        self._stats.pop(place, None)
        failed = self._dispatcher.died(place)
        for number in failed:
            del self._requests[number]
        self._emit([(number, ServerError(reason)) for number, reason in failed.items()])
        self._place()

    def _deliver(self, place: int, batch: Batch) -> None:
        self._stats[place] = batch.stats
        # What was aborted while this was under way is dropped.
        letters = [letter for letter in batch.items if letter[0] in self._requests]
        for number, delta in letters:
            if delta.finish_reason is not None:
                self._forget(number)
            else:
                self._dispatcher.begun(number)
        if letters:
            self._emit(letters)
            self._place()

    def _forget(self, number: int) -> int | None:
        del self._requests[number]
        return self._dispatcher.done(number)

    def _place(self) -> None:
        for replica, numbers in self._dispatcher.place():
            job = self._requests[numbers[0]]
            left = {number: job.params[number] for number in numbers}
            self._handles[replica].submit(replace(job, params=left))
