"""Streams: cancelling, refusing, failing and closing, with requests in flight."""

import asyncio
import gc
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from llmlab.errors import RequestError, ServerError
from llmlab.serve import AsyncEngine, Engine, EngineConfig, SamplingParams
from llmlab.serve.deltas import Delta, Output
from tests.tiny import tiny_model_folder

PROMPTS = [[3] * 5, [7, 8, 9], [11] * 30, [12]]
PARAMS = SamplingParams(max_tokens=30, ignore_eos=True, seed=3, logprobs=0)
ENDLESS = SamplingParams(ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def engine(folder):
    config = EngineConfig(model=folder, dtype="float32", max_running=2, max_waiting=2)
    with AsyncEngine(config) as engine:
        yield engine
        # Whatever a test did, the engine is idle and whole again (or was stopped on purpose).
        if engine.alive:
            asyncio.run(until(lambda: engine.stats().running + engine.stats().waiting == 0))
            assert engine.stats().free_pages == engine.stats().num_pages


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


async def read(engine: AsyncEngine, prompt, params=PARAMS) -> list[Delta]:
    return [delta async for delta in engine.stream(prompt, params)]


def run(test: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await test

    asyncio.run(bounded())


def test_streams_side_by_side_give_what_the_offline_engine_gives(engine, folder):
    with Engine(EngineConfig(model=folder, dtype="float32")) as offline:
        expected = list(offline.generate(PROMPTS, PARAMS))

    async def test() -> None:
        every = await asyncio.gather(*(read(engine, prompt) for prompt in PROMPTS))
        for prompt, deltas, output in zip(PROMPTS, every, expected, strict=True):
            assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
            joined = Output.from_deltas(prompt, deltas)
            assert joined.text == output.text
            assert joined.token_ids == output.token_ids
            assert [entry.token_id for entry in joined.logprobs] == list(output.token_ids)
        stats = engine.stats()
        assert stats.requests == len(PROMPTS)
        assert stats.prompt_tokens == sum(map(len, PROMPTS))
        assert stats.generated_tokens == 30 * len(PROMPTS)

    run(test())


def test_a_stream_serves_a_second_event_loop(engine):
    async def test() -> None:
        assert (await read(engine, PROMPTS[0]))[-1].finish_reason == "length"

    run(test())
    run(test())


def test_a_group_gives_what_its_members_give_alone(engine):
    every = [replace(PARAMS, seed=seed, temperature=1.5) for seed in range(4)]

    async def test() -> None:
        streams = engine.streams(PROMPTS[2], every)
        together = await asyncio.gather(*(collect(stream) for stream in streams))
        alone = [await read(engine, PROMPTS[2], params) for params in every]
        assert [[delta.token_ids for delta in deltas] for deltas in together] == [
            [delta.token_ids for delta in deltas] for deltas in alone
        ]
        assert engine.stats().requests == 8
        assert engine.stats().prompt_tokens == 5 * 30

    run(test())


async def collect(stream) -> list[Delta]:
    return [delta async for delta in stream]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)])
def test_the_streams_of_a_group_close_in_any_order(engine, order):
    async def test() -> None:
        streams = engine.streams(PROMPTS[2], [ENDLESS] * 4)
        await anext(streams[0])
        for at in order:
            await streams[at].aclose()
        await until(lambda: engine.stats().free_pages == engine.stats().num_pages)

    run(test())


def test_a_group_that_does_not_fit_the_queue_is_refused_as_a_whole(engine):
    async def test() -> None:
        stream = engine.stream(PROMPTS[0], ENDLESS)
        with pytest.raises(RequestError, match="1 requests run or wait already"):
            engine.streams(PROMPTS[0], [PARAMS] * 4)
        assert len(engine.streams(PROMPTS[0], [PARAMS] * 3)) == 3
        await stream.aclose()

    run(test())


async def first_delta(engine: AsyncEngine):
    stream = engine.stream(PROMPTS[0], ENDLESS)
    await anext(stream)
    return stream


def test_closing_a_stream_frees_its_pages(engine):
    async def test() -> None:
        stream = await first_delta(engine)
        await stream.aclose()
        await stream.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        await until(lambda: engine.stats().free_pages == engine.stats().num_pages)

    run(test())


def test_leaving_the_block_frees_its_pages(engine):
    async def test() -> None:
        async with engine.stream(PROMPTS[0], ENDLESS) as stream:
            await anext(stream)
        await until(lambda: engine.stats().free_pages == engine.stats().num_pages)

    run(test())


def test_cancelling_the_reader_frees_its_pages(engine):
    async def test() -> None:
        reader = asyncio.create_task(read(engine, PROMPTS[0], ENDLESS))
        await until(lambda: engine.stats().generated_tokens > 1)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        await until(lambda: engine.stats().free_pages == engine.stats().num_pages)

    run(test())


def test_forgetting_a_stream_frees_its_pages(engine):
    async def test() -> None:
        stream = await first_delta(engine)
        del stream
        gc.collect()
        await until(lambda: engine.stats().free_pages == engine.stats().num_pages)
        engine.stream(PROMPTS[0], ENDLESS)  # never read at all
        gc.collect()
        await until(lambda: engine.stats().running + engine.stats().waiting == 0)

    run(test())


def test_a_full_queue_refuses_with_429_and_recovers(engine):
    async def test() -> None:
        streams = [engine.stream(PROMPTS[0], ENDLESS) for _ in range(4)]
        with pytest.raises(RequestError, match="4 requests run or wait already") as caught:
            engine.stream(PROMPTS[0], PARAMS)
        assert caught.value.status == 429
        for stream in streams:
            await stream.aclose()
        await until(lambda: engine.stats().waiting == 0)
        assert (await read(engine, PROMPTS[0]))[-1].finish_reason == "length"

    run(test())


def test_a_bad_request_is_refused_before_it_waits(engine):
    async def test() -> None:
        with pytest.raises(RequestError, match="no tokens"):
            engine.stream([], PARAMS)
        with pytest.raises(RequestError, match="use at most 123"):
            engine.stream(PROMPTS[0], SamplingParams(max_tokens=1000))

    run(test())


def test_closing_ends_open_streams_with_abort(engine):
    async def test() -> None:
        stream = await first_delta(engine)
        waiting = [asyncio.create_task(read(engine, PROMPTS[1], ENDLESS)) for _ in range(3)]
        await asyncio.sleep(0)
        engine.close()
        engine.close()
        reasons = [delta.finish_reason async for delta in stream]
        assert reasons[-1] == "abort"
        assert [deltas[-1].finish_reason for deltas in await asyncio.gather(*waiting)] == [
            "abort"
        ] * 3
        assert not engine.alive
        with pytest.raises(ServerError, match="closed"):
            engine.stream(PROMPTS[0], PARAMS)
        assert engine.stats().free_pages == engine.stats().num_pages

    run(test())


def test_a_failing_step_fails_every_stream_and_says_so(folder, caplog):
    engine = AsyncEngine(EngineConfig(model=folder, dtype="float32"))

    async def test() -> None:
        stream = await first_delta(engine)
        waiting = [asyncio.create_task(read(engine, PROMPTS[1], ENDLESS)) for _ in range(2)]
        await asyncio.sleep(0)
        # A cache without layers makes every forward pass fail from now on.
        engine._engine._runner._cache._layers.clear()
        with pytest.raises(ServerError, match="the engine stopped: IndexError"):
            async for _ in stream:
                pass
        for reader in waiting:
            with pytest.raises(ServerError, match="the engine stopped"):
                await reader
        await until(lambda: not engine.alive)
        with pytest.raises(ServerError, match="the engine stopped"):
            engine.stream(PROMPTS[0], PARAMS)

    run(test())
    assert "the engine stopped" in caplog.text
    engine.close()


def test_a_closed_event_loop_is_no_failure(engine):
    async def leave_open() -> None:
        leaked.append(await first_delta(engine))

    leaked = []
    asyncio.run(leave_open())
    asyncio.run(until(lambda: engine.stats().free_pages == engine.stats().num_pages))
    assert engine.alive
    run(read_one(engine))


async def read_one(engine: AsyncEngine) -> None:
    assert (await read(engine, PROMPTS[0]))[-1].finish_reason == "length"
