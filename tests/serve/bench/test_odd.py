"""The load generator against servers that are not there, refuse, fail or hang."""

import subprocess
import sys
from typing import Any

import pytest

from llmlab.cli.main import main
from llmlab.errors import ConfigError, ServerError
from llmlab.serve.bench.config import BenchServeConfig
from llmlab.serve.bench.load import GIVE_UP
from llmlab.serve.bench.measures import LoadRow
from llmlab.serve.bench.report import table
from llmlab.serve.bench.run import bench
from tests.serve.bench.odd_server import odd_server
from tests.serve.live import live
from tests.tiny import tiny_model_folder


def config(url, **fields):
    small: dict[str, Any] = {"concurrency": (1,), "warmup": 0, "input_len": 4, "output_len": 3}
    small["base_url"] = (url,)
    return BenchServeConfig(**(small | fields))


def only_row(results):
    (row,) = results.rows
    assert isinstance(row, LoadRow)
    return row


def test_nobody_there(capsys):
    assert main(["bench", "serve", "--base-url", "http://127.0.0.1:9"]) == 1
    err = capsys.readouterr().err
    assert "no server answers at http://127.0.0.1:9/v1 (ConnectError); start one" in err


@pytest.mark.parametrize(
    ("url", "message"), [("127.0.0.1:8000", "is not a URL"), ("http://[::1", "is not a URL")]
)
def test_no_url(url, message):
    with pytest.raises(ServerError, match=message):
        bench(config(url))


def test_wrong_model():
    with odd_server() as odd, pytest.raises(ServerError, match=r"'evn'.*did you mean 'even'"):
        bench(config(odd.url, model="evn"))


@pytest.mark.parametrize(
    ("models", "message"), [({"data": []}, "lists no model;"), ([1], "lists no models")]
)
def test_no_models(models, message):
    with odd_server(models=models) as odd, pytest.raises(ServerError, match=message):
        bench(config(odd.url))


def test_a_server_that_lists_nothing_is_asked_by_name():
    with odd_server(models=None) as odd:
        with pytest.raises(ServerError, match=r"models answered 404.*or name the --model"):
            bench(config(odd.url))
        bench(config(odd.url, model="some", num_requests=1))
        assert {body["model"] for body in odd.bodies} == {"some"}


def test_keys(tmp_path):
    (tmp_path / "key").write_text("right\n")
    with live(tiny_model_folder(tmp_path), api_keys=("right",)) as server:
        with pytest.raises(ServerError, match=r"answered 401.*--api-key-file"):
            bench(config(server.url))
        row = only_row(bench(config(server.url, api_key_file=tmp_path / "key", num_requests=1)))
        assert row.requests == 1
    with pytest.raises(ConfigError, match="has no key"):
        bench(config("http://127.0.0.1:9", api_key_file=tmp_path / "none"))


def test_what_goes_wrong_is_counted_and_named():
    script = ["ok", "busy", "breaks off", "fails", "no event", "ends early", "busy", "ok"]
    with odd_server(script=script) as odd:
        results = bench(config(odd.url, num_requests=len(script)))
    row = only_row(results)
    assert (row.requests, row.failed) == (2, 6)
    assert row.errors == {
        "HTTP 503: queue of 1 is full": 2,  # the other one says 6
        "the stream broke off": 1,
        "the stream failed: out of memory": 1,
        "the stream has '[1, 2', which is no event": 1,
        "the stream ended without a finish_reason": 1,
    }
    assert row.output_tokens == 6  # of what is complete
    assert "odd" not in row.errors
    assert "2 x HTTP 503: queue of 1 is full" in table(results)


def test_a_hanging_request_fails_in_time():
    with odd_server(script=["hangs", "ok"]) as odd:
        row = only_row(bench(config(odd.url, num_requests=2, timeout_s=0.2)))
    assert row.errors == {"no end after 0.2 s": 1}
    assert row.requests == 1


def test_a_server_that_only_fails_is_left_alone():
    with odd_server(script=["busy"] * 500) as odd:
        with pytest.raises(ServerError, match="no request was answered: HTTP 503"):
            bench(config(odd.url, num_requests=400))
        assert len(odd.bodies) == 1 + GIVE_UP


def test_fields_that_a_server_does_not_know():
    with odd_server(unknown_fields=("ignore_eos",)) as odd:
        results = bench(config(odd.url, num_requests=1))
        assert not results.servers[0].takes_ignore_eos
        assert results.servers[0].counts_tokens
    unknown = ("ignore_eos", "stream_options")
    with odd_server(unknown_fields=unknown, with_usage=False) as odd:
        results = bench(config(odd.url, num_requests=2))
        assert not results.servers[0].counts_tokens
        row = only_row(results)
        assert (row.output_tokens, row.prompt_tokens) == (6, 0)
        assert "counts no tokens" in table(results)
    with odd_server(unknown_fields=("stream",)) as odd:
        with pytest.raises(ServerError, match="first request: HTTP 400: no stream here"):
            bench(config(odd.url))


def test_as_many_at_once_as_asked():
    with odd_server() as odd:
        asked = config(odd.url, concurrency=(4,), num_requests=40, output_len=30)
        assert only_row(bench(asked)).requests == 40
        assert odd.most_active == 4


def test_cached_tokens():
    with odd_server() as odd:
        row = only_row(bench(config(odd.url, num_requests=3)))
    assert (row.cached_tokens, row.prompt_tokens) == (6, 15)


def test_a_conversation_repeats_what_was_said():
    with odd_server() as odd:
        asked = config(odd.url, mix="multi-turn", turns=3, num_requests=6)
        assert only_row(bench(asked)).requests == 6
        first, second, third, other, *_ = [body["messages"] for body in odd.bodies[1:]]
    assert [len(messages) for messages in (first, second, third, other)] == [1, 3, 5, 1]
    assert third[: len(second)] == second
    assert second[1] == {"role": "assistant", "content": " 0 1 2"}
    assert [message["role"] for message in third] == ["user", "assistant"] * 2 + ["user"]
    assert other[0] != first[0]


def test_a_failed_turn_ends_its_conversation():
    with odd_server(script=["ok", "busy"]) as odd:
        asked = config(odd.url, mix="multi-turn", turns=4, num_requests=8)
        row = only_row(bench(asked))
    assert (row.requests, row.failed) == (5, 1)


def test_servers_take_turns_with_the_same_prompts():
    with odd_server() as one, odd_server() as two:
        urls = (one.url, two.url)
        asked = config(one.url, base_url=urls, num_requests=3, rounds=2, warmup=1)
        bench(asked)
        prompts = [[body["prompt"] for body in odd.bodies] for odd in (one, two)]
    assert prompts[0] == prompts[1]
    assert len(set(prompts[0])) == len(prompts[0]) == 1 + 2 * 4


def test_config_and_command_are_light():
    code = "import llmlab.serve.bench.config, sys; assert not {'torch', 'httpx'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = "import llmlab.cli.bench_serve, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_package_names_the_extra():
    code = """
import sys
from importlib import import_module
for package, module in [("httpx", "client"), ("matplotlib", "plot")]:
    sys.modules[package] = None
    sys.modules[f"{package}.axes"] = None
    try:
        import_module(f"llmlab.serve.bench.{module}")
    except Exception as error:
        print(error)
    del sys.modules[package]
"""
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    lines = out.stdout.splitlines()
    assert len(lines) == 2
    assert all("llmlab[serve]" in line for line in lines), lines
