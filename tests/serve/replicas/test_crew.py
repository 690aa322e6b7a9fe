"""The order of things between replicas and requests, with replicas that do what the test says."""

import asyncio
from collections.abc import Callable
from dataclasses import fields
from typing import Any, NoReturn

import pytest

from llmlab.errors import LabError, ModelError, RequestError, ServerError
from llmlab.serve.deltas import Delta, EngineStats
from llmlab.serve.params import SamplingParams
from llmlab.serve.replicas.crew import Crew
from llmlab.serve.replicas.replica import Batch, Job, ReplicaInfo

STATS = EngineStats(**{field.name: 1 + at for at, field in enumerate(fields(EngineStats)[:-1])})
PARAMS = SamplingParams()


def job(*numbers: int, **how: Any) -> Job:
    """Requests with a prompt that no others have."""
    return Job([numbers[0]] * 3, dict.fromkeys(numbers, PARAMS), **how)


class Scripted:
    """A replica that says what it is told to say, and writes down what it hears."""

    def __init__(self) -> None:
        self.loaded: asyncio.Future[ReplicaInfo] = asyncio.get_running_loop().create_future()
        self.news: asyncio.Queue[Batch | LabError] = asyncio.Queue()
        self.heard: list[tuple[str, int]] = []
        self.jobs: list[Job] = []
        self.is_killed = False

    async def load(self) -> ReplicaInfo:
        return await self.loaded

    async def listen(self, deliver: Callable[[Batch], None]) -> NoReturn:
        while True:
            item = await self.news.get()
            if isinstance(item, LabError):
                raise item
            deliver(item)

    def submit(self, job: Job) -> None:
        self.jobs.append(job)
        self.heard += [("submit", number) for number in job.params]

    def abort(self, number: int) -> None:
        self.heard.append(("abort", number))

    def kill(self) -> None:
        self.is_killed = True
        if not self.loaded.done():
            self.loaded.set_exception(ServerError("its process died"))

    def say(self, *items: tuple[int, Delta]) -> None:
        self.news.put_nowait(Batch(list(items), STATS))

    def die(self) -> None:
        self.news.put_nowait(ServerError("its process died"))


class Stage:
    """A crew of two scripted replicas, and what it emits."""

    def __init__(self, capacity: int = 2) -> None:
        self.replicas: list[Scripted] = []
        self.emitted: list[tuple[int, Delta | ServerError]] = []
        self.crew = Crew(
            self.start,
            num_replicas=2,
            capacity=capacity,
            page_len=4,
            emit=self.emitted.extend,
        )
        self.ready: asyncio.Future[ReplicaInfo] = asyncio.get_running_loop().create_future()
        self.work = asyncio.create_task(self.crew.run(self.ready.set_result))

    def start(self) -> Scripted:
        self.replicas.append(Scripted())
        return self.replicas[-1]

    async def begin(self) -> tuple[Scripted, Scripted]:
        await settle()
        for replica in self.replicas:
            replica.loaded.set_result(ReplicaInfo(pid=1, max_model_len=8, stats=STATS))
        await self.ready
        await settle()
        first, second = self.replicas
        return first, second


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_requests_of_a_dead_replica_go_to_the_living_one_at_once():
    async def test() -> None:
        stage = Stage()
        first, second = await stage.begin()
        for number in range(5):
            stage.crew.submit(job(number))
        assert first.heard == [("submit", 0), ("submit", 2)]
        assert second.heard == [("submit", 1), ("submit", 3)]
        first.say((0, Delta(text="begun")))
        second.say((1, Delta(finish_reason="stop")))
        await settle()
        assert second.heard[2:] == [("submit", 4)]
        second.say((4, Delta(finish_reason="stop")))
        await settle()
        first.die()
        await settle()
        assert first.is_killed
        assert second.heard[3:] == [("submit", 2)]
        numbers = [number for number, _ in stage.emitted]
        assert sorted(numbers) == [0, 0, 1, 4]
        assert isinstance(dict(stage.emitted)[0], ServerError)
        stage.work.cancel()
        await settle()
        assert all(replica.is_killed for replica in stage.replicas)

    asyncio.run(test())


def test_an_aborted_request_is_taken_back_and_its_last_deltas_are_dropped():
    async def test() -> None:
        stage = Stage(capacity=1)
        first, second = await stage.begin()
        for number in range(3):
            stage.crew.submit(job(number))
        first.say((0, Delta(text="under way")))
        stage.crew.abort(0)
        stage.crew.abort(0)
        assert first.heard == [("submit", 0), ("abort", 0), ("submit", 2)]
        await settle()
        assert stage.emitted == []
        assert not stage.work.done()
        stage.crew.submit(job(3))
        stage.crew.abort(3)  # still waits for room: no replica knows of it
        assert first.heard[3:] == second.heard[1:] == []
        stage.work.cancel()
        await settle()

    asyncio.run(test())


def test_a_refusal_ends_a_request_and_makes_room():
    async def test() -> None:
        stage = Stage(capacity=1)
        first, _ = await stage.begin()
        for number in range(3):
            stage.crew.submit(job(number))
        refused = Delta(finish_reason="abort", error=RequestError("too many requests"))
        first.say((0, refused))
        await settle()
        assert stage.emitted == [(0, refused)]
        assert first.heard == [("submit", 0), ("submit", 2)]
        stage.work.cancel()
        await settle()

    asyncio.run(test())


def test_a_group_travels_whole_and_again_without_what_is_over():
    async def test() -> None:
        stage = Stage(capacity=4)
        first, second = await stage.begin()
        group = job(0, 1, 2, client="ann", is_streamed=False)
        stage.crew.submit(group)
        stage.crew.submit(job(3))
        stage.crew.submit(job(4, 5))
        stage.crew.submit(job(6, 7))  # waits: no replica has room for both
        stage.crew.submit(job(8))
        assert first.jobs == [group]
        assert second.jobs == [job(3), job(4, 5)]
        stage.crew.abort(1)
        assert first.jobs[1:] == [job(6, 7)]
        assert second.jobs[2:] == [job(8)]
        first.die()
        second.say(*((number, Delta(finish_reason="stop")) for number in (3, 4, 5, 8)))
        await settle()
        left = Job(group.prompt_ids, {0: PARAMS, 2: PARAMS}, client="ann", is_streamed=False)
        assert second.jobs[3:] == [left, job(6, 7)]
        stage.work.cancel()
        await settle()

    asyncio.run(test())


def test_counters_are_those_of_the_living():
    async def test() -> None:
        stage = Stage()
        first, _ = await stage.begin()
        assert stage.crew.stats().steps == 2 * STATS.steps
        assert stage.crew.stats().replicas == 2
        first.die()
        await settle()
        assert stage.crew.stats() == STATS
        assert len(stage.replicas) == 3  # one is on its way
        stage.work.cancel()
        await settle()
        assert all(replica.is_killed for replica in stage.replicas)

    asyncio.run(test())


def test_a_model_that_cannot_be_loaded_ends_all():
    async def test() -> None:
        stage = Stage()
        await settle()
        stage.replicas[1].loaded.set_exception(ModelError("no weights"))
        with pytest.raises(ModelError, match="no weights"):
            await stage.work
        assert all(replica.is_killed for replica in stage.replicas)
        assert not stage.ready.done()

    asyncio.run(test())
