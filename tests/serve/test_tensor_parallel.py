"""One model in two processes: the tokens of one, and an end to all when one of them dies."""

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llmlab.errors import ConfigError, ServerError
from llmlab.model import load_model, save_model
from llmlab.model.sharding import Share
from llmlab.serve import AsyncEngine, Engine, EngineConfig, SamplingParams, ServeConfig
from llmlab.serve.deltas import Output
from llmlab.serve.rank_worker import RankSettings
from llmlab.serve.runner import Runner
from llmlab.serve.sequence import Sequence, Slice
from llmlab.serve.tensor_parallel import Workers
from tests.serve.live import live, until
from tests.serve.processes import children, is_running
from tests.tiny import tiny_model, tiny_model_folder, tiny_tokenizer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

LENGTHS = (1, 2, 15, 16, 17, 31, 40, 70)
GREEDY = SamplingParams(
    temperature=0, max_tokens=12, ignore_eos=True, logprobs=3, prompt_logprobs=3
)
ENDLESS = SamplingParams(ignore_eos=True)
TOLERANCE = 1e-4  # float32, three layers: the same sums in another order


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"), "llama")


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (n,), generator=generator).tolist() for n in LENGTHS]


def config_of(folder: Path, **changes) -> EngineConfig:
    return replace(EngineConfig(model=folder, dtype="float32", tensor_parallel=2), **changes)


def settings_of(folder: Path) -> RankSettings:
    return RankSettings(
        rank=0, size=2, model=str(folder), dtype="float32", device="cpu", num_pages=8, page_len=4
    )


def assert_same(outputs: list[Output], expected: list[Output]) -> None:
    """The same greedy tokens, and the log-probabilities of all positions but for rounding."""
    assert [output.token_ids for output in outputs] == [output.token_ids for output in expected]
    for output, wanted in zip(outputs, expected, strict=True):
        assert output.prompt_logprobs is not None
        assert wanted.prompt_logprobs is not None
        pairs = zip(
            [*output.prompt_logprobs[1:], *output.logprobs],
            [*wanted.prompt_logprobs[1:], *wanted.logprobs],
            strict=True,
        )
        for own, other in pairs:
            assert own is not None
            assert other is not None
            for entry, twin in zip((own, *own.top), (other, *other.top), strict=True):
                assert abs(entry.logprob - twin.logprob) < TOLERANCE


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "qwen2"])
def test_two_processes_give_the_tokens_of_one(tmp_path, architecture):
    folder = tmp_path / "model"
    model = tiny_model(architecture, vocab_size=385)  # odd: a share of the head has a row too many
    save_model(model, tiny_tokenizer(), folder)
    with Engine(config_of(folder, tensor_parallel=1, max_running=8)) as engine:
        expected = list(engine.generate(prompts(), GREEDY))
        one = engine.stats()
    # Prompts in chunks, beside decodes of a batch.
    with Engine(config_of(folder, max_running=8, max_batch_tokens=11)) as engine:
        assert_same(list(engine.generate(prompts(), GREEDY)), expected)
        stats = engine.stats()
        assert len(children()) == 1
    assert stats.num_pages == one.num_pages, "kv_memory_mb is that of both together"
    assert stats.free_pages == stats.num_pages
    assert children() == []


def test_a_server_answers_from_two_processes_and_takes_them_along(folder):
    body = {"prompt": prompts()[3], "max_tokens": 8, "temperature": 0}
    with live(folder) as server:
        expected = server.post("/v1/completions", **body).json()["choices"]
    with live(folder, tensor_parallel=2) as server:
        assert len(children()) == 1
        assert server.post("/v1/completions", **body).json()["choices"] == expected
    assert children() == []


def test_a_killed_process_ends_every_stream_with_a_clear_error(folder):
    async def test(engine: AsyncEngine) -> None:
        streams = [engine.stream(prompt, ENDLESS) for prompt in prompts()[:3]]
        for stream in streams:
            await anext(stream)
        os.kill(children()[0], signal.SIGKILL)
        for stream in streams:
            with pytest.raises(
                ServerError, match=r"process 1 of tensor_parallel=2 was killed by SIGKILL; start"
            ):
                async for _ in stream:
                    pass
        assert children() == []
        assert not engine.alive

    async def bounded() -> None:
        async with asyncio.timeout(30):
            await test(engine)

    with AsyncEngine(config_of(folder)) as engine:
        asyncio.run(bounded())


def test_a_process_killed_while_nothing_runs_is_noticed_at_the_next_step(folder):
    with Engine(config_of(folder)) as engine:
        (pid,) = children()
        os.kill(pid, signal.SIGKILL)
        until(lambda: not is_running(pid))
        with pytest.raises(ServerError, match="was killed by SIGKILL"):
            list(engine.generate([[1, 2, 3]], GREEDY))
        assert children() == []
        with pytest.raises(ServerError, match="have ended; start the engine again"):
            list(engine.generate([[1, 2, 3]], GREEDY))


def test_pages_are_copied_in_every_process(folder):
    """A prompt is read into some pages, and another sequence goes on from a copy of them."""
    ids = prompts()[5][:11]
    read, copied = (
        Sequence(
            number=0,
            prompt_len=len(ids),
            token_ids=list(ids),
            params=GREEDY,
            max_len=128,
            seed=0,
            pages=pages,
        )
        for pages in ([0, 1, 2], [5, 4, 7])
    )
    settings = settings_of(folder)
    workers = Workers(settings, torch.device("cpu"))
    try:
        model, tokenizer = load_model(folder, share=Share(0, 2))
        runner = Runner(model, tokenizer, num_pages=8, page_len=4, ranks=workers.connect())
        runner.run([Slice(read, 0, 10)])
        (expected,) = runner.run([Slice(read, 10, 11)])
        runner.copy_pages([(0, 5), (1, 4), (2, 7)])
        (result,) = runner.run([Slice(copied, 10, 11)])
    finally:
        workers.close()
    assert result.token_ids == expected.token_ids
    assert result.logprobs == expected.logprobs
    assert children() == []


def test_a_process_that_cannot_load_its_share_says_why(tmp_path):
    workers = Workers(settings_of(tmp_path / "nowhere"), torch.device("cpu"))
    with pytest.raises(ServerError, match=r"process 1 of .* could not start: no model folder .*"):
        workers.connect()
    assert children() == []


def test_a_process_ends_with_its_parent_whatever_it_does(folder):
    """Of its parent it sees a pipe, which closes however the parent ends."""
    command = [sys.executable, "-m", "llmlab.serve.rank_worker"]
    with subprocess.Popen(
        [*command, replace(settings_of(folder), rank=1, store="unused").to_json()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)  # as a service manager sends it, to all at once
        process.stdin.close()
        assert process.wait(30) == 1


def test_a_model_that_does_not_divide_starts_no_process(tmp_path):
    folder = tiny_model_folder(tmp_path, "llama", num_attention_heads=3, num_key_value_heads=3)
    with pytest.raises(ConfigError, match=r"num_key_value_heads=3; use 1"):
        Engine(config_of(folder))
    assert children() == []
    with pytest.raises(ConfigError, match="tensor_parallel=0 must be at least 1"):
        EngineConfig(model=folder, tensor_parallel=0)
    assert ServeConfig(model=folder, tensor_parallel=2).engine.tensor_parallel == 2


_PARENT = """
import sys
from llmlab.serve import Engine, EngineConfig, SamplingParams

with Engine(EngineConfig(model=sys.argv[1], dtype="float32", tensor_parallel=2)) as engine:
    print("ready", flush=True)
    while True:
        list(engine.generate([[1, 2, 3]], SamplingParams(max_tokens=8)))
"""


@pytest.mark.slow
def test_nothing_is_left_behind_by_a_parent_that_is_killed(folder):
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(folder)], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        (pid,) = children(parent.pid)
        parent.kill()
        until(lambda: not is_running(pid), timeout_s=30)


@pytest.mark.slow
def test_a_process_that_hangs_is_given_up_within_a_minute(folder):
    with Engine(config_of(folder)) as engine:
        (pid,) = children()
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(ServerError, match=r"lost one another \(.*Timed out.*\); start"):
            list(engine.generate([[1, 2, 3]], GREEDY))
        assert not is_running(pid)
