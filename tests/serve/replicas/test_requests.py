"""What a request may be besides a prompt: one of a group, of a client, salted, in a grammar."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from llmlab.errors import RequestError
from llmlab.serve import EngineConfig, SamplingParams
from llmlab.serve.deltas import Output
from tests.serve.replicas.local import collect, local_engine, offline, run
from tests.tiny import tiny_model_folder

PROMPT = [3] * 5
GREEDY = SamplingParams(max_tokens=40, ignore_eos=True, temperature=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def config(folder) -> EngineConfig:
    return EngineConfig(model=folder, dtype="float32", max_running=2, max_waiting=2)


def test_a_group_goes_to_one_replica_which_reads_its_prompt_once(config):
    prompt = [9] * 40
    every = [replace(GREEDY, seed=seed, temperature=1.5, max_tokens=9) for seed in range(4)]
    expected = offline(config, [prompt] * 4, every)
    with local_engine(config) as (engine, replicas):

        async def test() -> None:
            streams = engine.streams(prompt, every)
            deltas = await asyncio.gather(*(collect(stream) for stream in streams))
            outputs = [Output.from_deltas(prompt, own) for own in deltas]
            assert [one.token_ids for one in outputs] == [one.token_ids for one in expected]
            again = Output.from_deltas(prompt, await collect(engine.stream([*prompt, 1], GREEDY)))
            assert again.num_cached_tokens == 2 * config.page_len

        run(test())
        stats = [replica.replica._engine.stats() for replica in replicas.started]
        assert [one.requests for one in stats] == [5, 0]
        assert stats[0].prompt_tokens == 40 + 41


def test_a_group_larger_than_a_replica_is_refused_as_a_whole(config):
    async def test() -> None:
        with pytest.raises(RequestError, match="5 requests have one prompt and a replica holds 4"):
            engine.streams(PROMPT, [GREEDY] * 5)
        streams = [stream for _ in range(2) for stream in engine.streams(PROMPT, [GREEDY] * 3)]
        with pytest.raises(RequestError, match="6 requests run or wait already"):
            engine.streams(PROMPT, [GREEDY] * 3)
        for stream in streams:
            assert (await collect(stream))[-1].finish_reason == "length"

    with local_engine(config) as (engine, _):
        run(test())


def test_salts_part_what_replicas_have_read(config):
    prompt = [5] * 40
    with local_engine(config) as (engine, replicas):

        async def test() -> None:
            for salt in ("ann", "bob", "bob", "bob"):
                params = SamplingParams(max_tokens=2, cache_salt=salt)
                await collect(engine.stream(prompt, params))

        run(test())
        assert [replica.replica._engine.stats().requests for replica in replicas.started] == [1, 3]


def test_clients_take_turns_in_a_replica(config):
    with local_engine(config, 1) as (engine, _):

        async def test() -> None:
            order = []

            async def ask(client: str) -> None:
                stream = engine.stream(PROMPT, GREEDY, client=client, is_streamed=False)
                assert (await collect(stream))[-1].finish_reason == "length"
                order.append(client)

            # Two run at a time, and whoever had least goes first: the third of one is the last.
            await asyncio.gather(ask("ann"), ask("ann"), ask("ann"), ask("bob"))
            assert order[-1] == "ann"

        run(test())
