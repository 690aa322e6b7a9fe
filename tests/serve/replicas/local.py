"""Replicas in this very process: everything of theirs but Ray, so tests take milliseconds."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NoReturn

from llmlab.errors import ServerError
from llmlab.serve.deltas import Delta, Output
from llmlab.serve.engine import Engine
from llmlab.serve.params import EngineConfig
from llmlab.serve.replicas.engine import ReplicaEngine
from llmlab.serve.replicas.replica import Batch, Job, Replica, ReplicaInfo
from llmlab.serve.streams import Stream


class LocalReplica:
    """A `Replica` that can be killed like one in a process of its own."""

    def __init__(self, config: EngineConfig) -> None:
        self.replica = Replica(config)
        self.loop = asyncio.get_running_loop()
        self.reader = ThreadPoolExecutor(1)
        self.is_loaded = self.is_dead = False

    async def load(self) -> ReplicaInfo:
        if self.is_dead:
            raise ServerError("its process died")
        info = await self.loop.run_in_executor(self.reader, self.replica.load)
        self.is_loaded = True
        return info

    async def listen(self, deliver: Callable[[Batch], None]) -> NoReturn:
        while not self.is_dead:
            await self.loop.run_in_executor(self.reader, self._read, deliver)
        raise ServerError("its process died")

    def submit(self, job: Job) -> None:
        if not self.is_dead:
            self.replica.submit(job)

    def abort(self, number: int) -> None:
        if not self.is_dead:
            self.replica.abort(number)

    def kill(self) -> None:
        if not self.is_dead:
            self.is_dead = True
            self.replica._box.fail(ServerError("its process died"))
            if self.is_loaded:
                self.replica.close()
        self.reader.shutdown()

    def _read(self, deliver: Callable[[Batch], None]) -> None:
        for batch in self.replica.batches(count=3):
            self.loop.call_soon_threadsafe(deliver, batch)


class LocalReplicas:
    """Starts replicas and can kill them from the test's thread.

    Args:
        config: of each one's engine.
        num_good: those started after so many are dead from the beginning.
    """

    def __init__(self, config: EngineConfig, num_good: int) -> None:
        self.config = config
        self.num_good = num_good
        self.started: list[LocalReplica] = []

    def start(self) -> LocalReplica:
        replica = LocalReplica(self.config)
        if len(self.started) >= self.num_good:
            replica.kill()
        self.started.append(replica)
        return replica

    def kill(self, number: int) -> None:
        """Kill the replica that was started as the n-th one."""
        replica = self.started[number]
        replica.loop.call_soon_threadsafe(replica.kill)


@contextmanager
def local_engine(
    config: EngineConfig, num_replicas: int = 2, num_good: int = 1000
) -> Iterator[tuple[ReplicaEngine, LocalReplicas]]:
    """An engine over replicas of this process."""
    replicas = LocalReplicas(config, num_good)
    with ReplicaEngine(config, replicas.start, num_replicas) as engine:
        yield engine, replicas


def run(test: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await test

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


async def collect(stream: Stream) -> list[Delta]:
    return [delta async for delta in stream]


def offline(config: EngineConfig, prompts, params) -> list[Output]:
    with Engine(config) as engine:
        return list(engine.generate(prompts, params))
