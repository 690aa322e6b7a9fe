"""Several replicas behind one engine: the same answers, and what happens when one dies."""

import asyncio
import gc
import os
import sys
import threading
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from llmlab.errors import ConfigError, MissingExtraError, ModelError, RequestError, ServerError
from llmlab.serve import EngineConfig, SamplingParams
from llmlab.serve.deltas import Delta, Output
from llmlab.serve.replicas.cluster import running_replicas
from llmlab.serve.replicas.engine import ReplicaEngine
from tests.serve.live import break_steps
from tests.serve.replicas.local import LocalReplica, collect, local_engine, offline, run, until
from tests.tiny import tiny_model_folder

PROMPTS = [[3 + number] * (5 + number) for number in range(8)]
GREEDY = SamplingParams(max_tokens=40, ignore_eos=True, temperature=0)
ENDLESS = SamplingParams(ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def config(folder) -> EngineConfig:
    return EngineConfig(model=folder, dtype="float32", max_running=2, max_waiting=2)


@pytest.fixture
def engine(config):
    with local_engine(config) as (engine, _):
        yield engine
        # Whatever a test did, the replicas are idle and whole again.
        asyncio.run(until(lambda: is_idle(engine)))


def is_idle(engine: ReplicaEngine) -> bool:
    stats = engine.stats()
    return stats.running + stats.waiting == 0 and stats.free_pages == stats.num_pages


async def read(engine: ReplicaEngine, prompt, params=GREEDY) -> list[Delta]:
    return await collect(engine.stream(prompt, params))


def test_streams_give_what_one_engine_gives(engine, config):
    params = SamplingParams(max_tokens=30, ignore_eos=True, seed=3, logprobs=1)
    expected = offline(config, PROMPTS, params)

    async def test() -> None:
        every = await asyncio.gather(*(read(engine, prompt, params) for prompt in PROMPTS))
        for prompt, deltas, output in zip(PROMPTS, every, expected, strict=True):
            joined = Output.from_deltas(prompt, deltas)
            assert joined.text == output.text
            assert joined.token_ids == output.token_ids
            assert [entry.token_id for entry in joined.logprobs] == list(output.token_ids)
        stats = engine.stats()
        assert stats.replicas == 2
        assert stats.requests == len(PROMPTS)
        assert stats.generated_tokens == 30 * len(PROMPTS)

    run(test())


def test_both_replicas_work(config):
    with local_engine(config) as (engine, replicas):

        async def test() -> None:
            await asyncio.gather(*(read(engine, prompt) for prompt in PROMPTS))

        run(test())
        for replica in replicas.started:
            assert replica.replica._engine.stats().requests == len(PROMPTS) / 2


def test_the_next_turn_goes_to_the_replica_that_read_the_last_one(config):
    first, second = [5] * 40, [6] * 40
    with local_engine(config) as (engine, replicas):

        async def test() -> None:
            for prompt in (first, second, [*first, 7], [*first, 7, 8], [*second, 9], [*first, 9]):
                await read(engine, prompt, SamplingParams(max_tokens=2))

        run(test())
        # The first conversation has four turns of about 40 tokens, the second one has two.
        assert [replica.replica._engine.stats().requests for replica in replicas.started] == [4, 2]


def test_a_killed_replica_fails_what_it_had_begun_and_another_takes_the_rest(config, caplog):
    expected = offline(config, PROMPTS, GREEDY)

    with local_engine(config) as (engine, replicas):

        async def answer(prompt, begun: asyncio.Event) -> tuple[int, ...] | str:
            tokens: tuple[int, ...] = ()
            try:
                async for delta in engine.stream(prompt, GREEDY):
                    begun.set()
                    tokens += delta.token_ids
            except ServerError as error:
                return str(error)
            return tokens

        async def test() -> None:
            # Two run and two wait on each replica; the first prompt is on the first one.
            begun = [asyncio.Event() for _ in PROMPTS]
            answers = asyncio.gather(*map(answer, PROMPTS, begun))
            await begun[0].wait()
            replicas.kill(0)
            got = await answers
            failed = [index for index, tokens in enumerate(got) if isinstance(tokens, str)]
            assert 0 in failed
            assert len(failed) <= config.max_running
            for index, (tokens, output) in enumerate(zip(got, expected, strict=True)):
                if index in failed:
                    assert begun[index].is_set()
                    assert "died when part of the answer had been sent" in tokens
                else:
                    assert tokens == output.token_ids
            await until(lambda: engine.stats().replicas == 2)
            assert len(replicas.started) == 3
            again = await asyncio.gather(*(read(engine, prompt) for prompt in PROMPTS))
            for prompt, deltas, output in zip(PROMPTS, again, expected, strict=True):
                assert Output.from_deltas(prompt, deltas).token_ids == output.token_ids
            assert replicas.started[2].replica._engine.stats().requests >= len(PROMPTS) / 2

        run(test())
    assert "replica 0 is gone: its process died" in caplog.text


def test_requests_wait_while_no_replica_runs(config):
    with local_engine(config, 1) as (engine, replicas):

        async def test() -> None:
            replicas.kill(0)
            await until(lambda: not engine.alive)
            assert (await read(engine, PROMPTS[0]))[-1].finish_reason == "length"
            assert engine.alive

        run(test())


def test_a_request_that_loses_three_replicas_is_not_tried_again(config):
    class Deadly(LocalReplica):
        """Dies of one prompt, before it says anything."""

        def submit(self, job):
            if job.prompt_ids == PROMPTS[0]:
                self.kill()
            else:
                super().submit(job)

    with ReplicaEngine(config, lambda: Deadly(config), 2) as engine:

        async def test() -> None:
            with pytest.raises(ServerError, match="3 replicas died with this request"):
                await read(engine, PROMPTS[0])
            assert (await read(engine, PROMPTS[1]))[-1].finish_reason == "length"
            await until(lambda: engine.stats().replicas == 2)

        run(test())


def test_an_engine_that_fails_is_replaced(config, tmp_path):
    long = tiny_model_folder(tmp_path, max_position_embeddings=4096)
    with local_engine(replace(config, model=long)) as (engine, replicas):

        async def test() -> None:
            await anext(stream := engine.stream(PROMPTS[0], ENDLESS))
            break_steps(replicas.started[0].replica._engine)
            with pytest.raises(ServerError, match="part of the answer had been sent"):
                async for _ in stream:
                    pass
            await until(lambda: engine.stats().replicas == 2 and len(replicas.started) == 3)
            assert (await read(engine, PROMPTS[0]))[-1].finish_reason == "length"

        run(test())


def test_replicas_that_cannot_be_replaced_are_given_up(config, caplog):
    with local_engine(config, 1, num_good=1) as (engine, replicas):

        async def test() -> None:
            running = engine.stream(PROMPTS[0], ENDLESS)
            await anext(running)
            others = [asyncio.create_task(read(engine, PROMPTS[1], ENDLESS)) for _ in range(3)]
            await asyncio.sleep(0)
            replicas.kill(0)
            with pytest.raises(ServerError, match="part of the answer had been sent"):
                async for _ in running:
                    pass
            ends = await asyncio.gather(*others, return_exceptions=True)
            assert any("again and again" in str(end) for end in ends)
            assert all(isinstance(end, ServerError) for end in ends)
            assert not engine.alive
            assert engine.stats().replicas == 0
            with pytest.raises(ServerError, match=r"again and again.*start it again"):
                engine.stream(PROMPTS[0], GREEDY)

        run(test())
    assert len(replicas.started) == 4  # the first one, and three in its place
    assert "replica 0 is not replaced" in caplog.text


def test_a_missing_package_names_the_extra(config):
    with mock.patch.dict(os.environ), mock.patch.dict(sys.modules, ray=None):
        with pytest.raises(MissingExtraError, match=r"llmlab\[ray\]"), running_replicas(config, 2):
            pass


def test_a_model_that_cannot_be_loaded_is_told_before_a_replica_starts(config, tmp_path):
    with pytest.raises(ModelError), local_engine(replace(config, model=tmp_path)):
        pass


def test_what_a_replica_refuses_at_the_start_is_raised(config):
    threads = set(threading.enumerate())
    with (
        pytest.raises(ConfigError, match="max_model_len=4096 is above"),
        local_engine(replace(config, max_model_len=4096)),
    ):
        pass
    assert set(threading.enumerate()) == threads


def test_leaving_cancelling_and_forgetting_streams_frees_their_pages(engine):
    async def first_delta():
        stream = engine.stream(PROMPTS[0], ENDLESS)
        await anext(stream)
        return stream

    async def test() -> None:
        stream = await first_delta()
        await stream.aclose()
        await stream.aclose()
        await until(lambda: is_idle(engine))

        reader = asyncio.create_task(read(engine, PROMPTS[0], ENDLESS))
        await until(lambda: engine.stats().running == 1)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        await until(lambda: is_idle(engine))

        stream = await first_delta()
        del stream
        engine.stream(PROMPTS[0], ENDLESS)  # never read at all
        gc.collect()

    run(test())


def test_a_closed_event_loop_is_no_failure(engine):
    leaked = []

    async def leave_open() -> None:
        leaked.append(engine.stream(PROMPTS[0], ENDLESS))
        await anext(leaked[0])

    asyncio.run(leave_open())
    asyncio.run(until(lambda: is_idle(engine)))
    assert engine.alive


def test_full_replicas_refuse_with_429_and_recover(engine):
    async def test() -> None:
        streams = [engine.stream(PROMPTS[0], ENDLESS) for _ in range(8)]
        with pytest.raises(RequestError, match="8 requests run or wait already") as caught:
            engine.stream(PROMPTS[0], GREEDY)
        assert caught.value.status == 429
        for stream in streams:
            await stream.aclose()
        assert (await read(engine, PROMPTS[0]))[-1].finish_reason == "length"

    run(test())


def test_closing_ends_open_streams_with_abort(config):
    with local_engine(config) as (engine, _):

        async def test() -> None:
            running = engine.stream(PROMPTS[0], ENDLESS)
            await anext(running)
            waiting = [asyncio.create_task(read(engine, PROMPTS[1], ENDLESS)) for _ in range(5)]
            await asyncio.sleep(0)
            engine.close()
            engine.close()
            assert [delta.finish_reason async for delta in running][-1] == "abort"
            assert [deltas[-1].finish_reason for deltas in await asyncio.gather(*waiting)] == [
                "abort"
            ] * 5
            assert not engine.alive
            with pytest.raises(ServerError, match="closed"):
                engine.stream(PROMPTS[0], GREEDY)

        run(test())


def test_an_error_of_our_own_ends_every_stream(config, caplog):
    class Broken(LocalReplica):
        """Fails in a way that no replica should."""

        async def listen(self, deliver):
            raise KeyError("listen")

    with ReplicaEngine(config, lambda: Broken(config), 1) as engine:

        async def test() -> None:
            with pytest.raises(ServerError, match=r"the replicas stopped: .*KeyError"):
                await read(engine, PROMPTS[0])

        run(test())
    assert "the replicas cannot go on" in caplog.text
