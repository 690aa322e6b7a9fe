"""What a request may be besides a prompt: one of a group, of a client, salted, in a grammar."""

import asyncio
import re
import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from llmlab.errors import RequestError, ServerError
from llmlab.serve import EngineConfig, SamplingParams
from llmlab.serve.deltas import Output
from llmlab.serve.grammar import GrammarSpec
from tests.serve.replicas.local import collect, local_engine, offline, run, until
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


AB = SamplingParams(grammar=GrammarSpec(regex="[ab]{3}c"), seed=1, temperature=2)
MALFORMED = SamplingParams(grammar=GrammarSpec(regex="(("))
ENDLESS_AB = SamplingParams(  # meets a limit of the library on the way
    grammar=GrammarSpec(regex="((a{1,100}){1,100}){1,100}"), min_tokens=100
)
SLOW = {"properties": {f"f{number}": {"type": "integer"} for number in range(2_400)}}


def test_texts_keep_to_their_grammars(config):
    every = [replace(AB, seed=seed) for seed in range(4)]
    expected = offline(config, [PROMPT] * 4, every)
    with local_engine(config) as (engine, _):

        async def test() -> None:
            await engine.prepare(GREEDY)
            await engine.prepare(AB)
            streams = engine.streams(PROMPT, every)
            for stream, output in zip(streams, expected, strict=True):
                assert Output.from_deltas(PROMPT, await collect(stream)).text == output.text

        run(test())
    assert all(re.fullmatch("[ab]{3}c", output.text) for output in expected)


def test_a_grammar_is_refused_in_front_and_else_by_the_replica(config):
    with local_engine(config) as (engine, _):

        async def test() -> None:
            with pytest.raises(RequestError, match="unclosed group") as caught:
                await engine.prepare(MALFORMED)
            assert (caught.value.param, caught.value.status) == ("regex", 400)
            assert engine.stats().requests == 0
            others = engine.streams(PROMPT, [GREEDY] * 2)
            for stream in engine.streams(PROMPT, [MALFORMED, GREEDY]):
                with pytest.raises(RequestError, match="unclosed group") as caught:
                    await collect(stream)
                assert (caught.value.param, caught.value.status) == ("regex", 400)
            assert [len(await collect(other)) > 1 for other in others] == [True] * 2
            assert engine.stats().replicas == 2

        run(test())


def test_a_grammar_that_cannot_be_followed_ends_its_own_stream(config):
    with local_engine(config, 1) as (engine, _):

        async def test() -> None:
            other = engine.stream(PROMPT, GREEDY)
            stream = engine.stream(PROMPT, ENDLESS_AB)
            num_deltas = 0
            with pytest.raises(RequestError, match="cannot be followed beyond") as caught:
                async for _ in stream:
                    num_deltas += 1
            assert num_deltas > 5
            assert caught.value.param == "regex"
            assert (await collect(other))[-1].finish_reason == "length"

        run(test())


def test_a_request_that_is_left_while_its_grammar_compiles_never_runs(config):
    slow = SamplingParams(grammar=GrammarSpec(json_schema=SLOW))
    with local_engine(config, 1) as (engine, _):

        async def test() -> None:
            left = engine.streams(PROMPT, [slow, replace(slow, seed=1)])
            await collect(engine.stream(PROMPT, GREEDY))
            for stream in left:
                await stream.aclose()
            await until(lambda: engine.stats().waiting == 0)
            assert (await collect(engine.stream(PROMPT, AB)))[-1].finish_reason == "stop"
            assert engine.stats().requests == 2

        run(test())


def test_closing_ends_the_compilers(config):
    threads = set(threading.enumerate())
    children = set(psutil.Process().children())
    with local_engine(config) as (engine, _):

        async def test() -> None:
            await engine.prepare(AB)
            await collect(engine.stream(PROMPT, AB))
            assert set(psutil.Process().children()) > children
            engine.close()
            with pytest.raises(ServerError, match="is closed"):
                await engine.prepare(AB)

        run(test())
    assert set(threading.enumerate()) == threads
    assert set(psutil.Process().children()) == children
