"""Replicas on Ray: real processes, killed for real. Starting Ray takes some ten seconds."""

import asyncio
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import httpx
import psutil
import pytest

from llmlab.errors import ConfigError, RequestError, ServerError
from llmlab.serve import Engine, EngineConfig, SamplingParams
from llmlab.serve.grammar import GrammarSpec
from llmlab.serve.replicas.cluster import running_replicas
from llmlab.serve.streams import Stream
from tests.serve.live import until
from tests.tiny import tiny_model_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (extra `ray`)"),
]

PROMPTS = [[3 + number] * (5 + number) for number in range(10)]
GREEDY = SamplingParams(max_tokens=100, ignore_eos=True, temperature=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def config(folder) -> EngineConfig:
    return EngineConfig(model=folder, dtype="float32", kv_memory_mb=8, max_running=2)


def actors(root: psutil.Process) -> list[psutil.Process]:
    """Return the processes of the replicas below a process."""
    below = root.children(recursive=True)
    return [process for process in below if process.name().startswith("ray::Replica")]


def outer_addresses(processes: list[psutil.Process]) -> list[str]:
    """Return where processes listen other than on the loopback interface."""
    local = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
    return [
        f"{process.name()} {socket.laddr.ip}:{socket.laddr.port}"
        for process in processes
        for socket in process.net_connections()
        if socket.status == psutil.CONN_LISTEN and socket.laddr.ip not in local
    ]


def sessions(pid: int) -> list[Path]:
    """Return the folders of Ray that a process has left or uses."""
    return list(Path("/tmp").glob(f"llmlab-*/ray/session_*_{pid}"))


def test_a_killed_process_fails_what_it_had_begun_and_another_takes_the_rest(config, caplog):
    caplog.set_level(logging.INFO, logger="llmlab.serve.replicas.crew")
    with Engine(config) as one:
        expected = [output.token_ids for output in one.generate(PROMPTS, GREEDY)]
    this = psutil.Process()
    before = set(this.children(recursive=True))

    with running_replicas(config, 2) as engine:
        started = set(this.children(recursive=True)) - before
        assert len(actors(this)) == 2
        victim = int(caplog.text.split("replica 0 is ready: process ")[1].split()[0])
        assert not outer_addresses([this, *started])
        [session] = sessions(this.pid)
        assert session.parents[1].stat().st_mode & 0o777 == 0o700

        async def answer(index: int) -> tuple[int, ...] | ServerError:
            tokens: tuple[int, ...] = ()
            try:
                async for delta in engine.stream(PROMPTS[index], GREEDY):
                    tokens += delta.token_ids
                    if index == 0 and len(tokens) == 3:
                        os.kill(victim, signal.SIGKILL)
            except ServerError as error:
                return error
            return tokens

        async def test() -> None:
            async with asyncio.timeout(60):
                got = await asyncio.gather(*map(answer, range(len(PROMPTS))))
                failed = [index for index, end in enumerate(got) if isinstance(end, ServerError)]
                assert 0 in failed
                assert len(failed) <= config.max_running  # those that had begun, no others
                for index, tokens in enumerate(got):
                    if index in failed:
                        assert "died when part of the answer had been sent" in str(tokens)
                    else:
                        assert tokens == expected[index]
                while engine.stats().replicas < 2:
                    await asyncio.sleep(0.01)
                assert victim not in {process.pid for process in actors(this)}
                again = await asyncio.gather(*map(answer_again, range(len(PROMPTS))))
                assert again == expected

        async def answer_again(index: int) -> tuple[int, ...]:
            stream = engine.stream(PROMPTS[index], GREEDY)
            return tuple([i async for delta in stream for i in delta.token_ids])

        asyncio.run(test())
        started |= set(this.children(recursive=True)) - before
    assert not [process for process in started if process.is_running()]
    assert not sessions(this.pid)


def test_groups_salts_clients_and_grammars_travel(config):
    prompt = [5] * 40
    every = [
        SamplingParams(grammar=GrammarSpec(regex="[ab]{6}"), seed=seed, temperature=2)
        for seed in range(3)
    ]
    endless = SamplingParams(
        grammar=GrammarSpec(regex="((a{1,100}){1,100}){1,100}"), min_tokens=100, cache_salt="mine"
    )
    malformed = GrammarSpec(regex="((")
    with Engine(config) as one:
        expected = [output.text for output in one.generate([prompt] * 3, every)]

    async def text(stream: Stream) -> str:
        return "".join([delta.text async for delta in stream])

    with running_replicas(config, 2) as engine:

        async def test() -> None:
            async with asyncio.timeout(60):
                for params in (*every, endless):
                    await engine.prepare(params)
                streams = engine.streams(prompt, every, client="ann", is_streamed=False)
                assert [await text(stream) for stream in streams] == expected
                again = [delta async for delta in engine.stream([*prompt, 6], every[0])]
                assert again[0].num_cached_tokens == 2 * config.page_len
                with pytest.raises(RequestError, match="cannot be followed beyond") as caught:
                    await text(engine.stream(prompt, endless))
                assert (caught.value.param, caught.value.status) == ("regex", 400)
                with pytest.raises(RequestError, match="unclosed group"):
                    await text(engine.stream(prompt, replace(endless, grammar=malformed)))

        asyncio.run(test())


def test_a_replica_that_cannot_load_is_told_and_leaves_nothing(config, folder):
    too_long = EngineConfig(model=folder, dtype="float32", max_model_len=4096)
    with pytest.raises(ConfigError, match="max_model_len=4096 is above"):
        with running_replicas(too_long, 2):
            pass
    assert not actors(psutil.Process())


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_signals_end_the_server_and_all_its_processes(folder, number, status):
    command = [sys.executable, "-m", "llmlab", "serve", "--model", str(folder), "--port", "0"]
    command += ["--kv-memory-mb", "8", "--replicas", "2", "--shutdown-timeout-s", "20"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stderr is not None
            lines = []
            while "listening on " not in (line := process.stderr.readline()):
                assert line, "".join(lines)
                lines.append(line)
            assert any("in 2 replicas" in line for line in lines)
            url = line.split("listening on ")[1].split(",")[0]
            root = psutil.Process(process.pid)
            started = [root, *root.children(recursive=True)]
            assert not outer_addresses(started)
            # Where the server has no time to end them, two of Ray's helpers take a minute.
            must_end = actors(root) if number == signal.SIGKILL else started
            assert httpx.get(f"{url}/health").json()["replicas"] == 2
            body = {"prompt": "The", "max_tokens": 100, "ignore_eos": True, "stream": True}
            with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
                lines = response.iter_lines()
                next(lines)
                # Ctrl-C reaches every process of a terminal, the others this one alone.
                (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
                if number != signal.SIGKILL:
                    rest = [line.removeprefix("data: ") for line in lines if line]
                    assert rest[-1] == "[DONE]"
                    assert json.loads(rest[-2])["choices"][0]["finish_reason"] == "length"
            assert process.wait(timeout=60) == status
            until(lambda: not any(one.is_running() for one in must_end), timeout_s=30)
            assert bool(sessions(process.pid)) == (number == signal.SIGKILL)
        finally:
            process.kill()
            for folder in sessions(process.pid):
                shutil.rmtree(folder.parents[1])


def test_a_ray_that_would_listen_elsewhere_is_not_started(folder):
    code = """
import ray, sys
from llmlab.serve.params import EngineConfig
from llmlab.serve.grammar import GrammarSpec
from llmlab.serve.replicas.cluster import running_replicas
from llmlab.serve.streams import Stream
with running_replicas(EngineConfig(model=sys.argv[1]), 2):
    pass
"""
    environment = {**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ServerError: Ray would listen on " in done.stderr
    assert "leave the import to the server" in done.stderr
