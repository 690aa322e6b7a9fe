"""The load generator against our own server: what it counts is what the engine did."""

import json
from typing import Any

import pytest

from llmlab.cli.main import main
from llmlab.errors import ServerError
from llmlab.serve.bench.config import BenchServeConfig
from llmlab.serve.bench.measures import LoadRow, LongPromptRow
from llmlab.serve.bench.run import bench
from tests.serve.live import live, until
from tests.tiny import tiny_model_folder

PROBE = (8, 2)
"""Words of the first question, and tokens of its answer."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("model"), max_position_embeddings=512)


@pytest.fixture(scope="module")
def server(folder):
    with live(folder) as server:
        yield server


def config(server, **fields):
    small: dict[str, Any] = {"base_url": (server.url,), "input_len": 8}
    return BenchServeConfig(**(small | fields))


def load_rows(results):
    rows = [row for row in results.rows if isinstance(row, LoadRow)]
    assert len(rows) == len(results.rows)
    return rows


def test_tokens_counted_are_tokens_asked_and_tokens_computed(server, folder):
    before = server.engine.stats()
    asked = config(
        server, tokenizer=folder, concurrency=(1, 3), num_requests=7, output_len=5, warmup=2
    )
    results = bench(asked)
    for row in load_rows(results):
        assert (row.requests, row.failed, row.errors) == (7, 0, {})
        assert row.output_tokens == row.asked_tokens == 35
        assert row.prompt_tokens == 7 * 8
        assert row.output_tok_per_s == pytest.approx(35 / row.seconds)
        assert row.total_tok_per_s == pytest.approx((35 + 56) / row.seconds)
        assert row.requests_per_s == pytest.approx(7 / row.seconds)
        assert row.ttft_ms is not None
        assert row.e2e_ms is not None
        assert row.ttft_ms.count == row.e2e_ms.count == 7
        assert 0 < row.ttft_ms.p50 < row.e2e_ms.p50 < 1e3 * row.seconds
        assert row.tokens_per_event is not None
        assert row.tokens_per_event >= 1  # half characters wait for their other half
    after = server.engine.stats()
    assert after.generated_tokens - before.generated_tokens == PROBE[1] + 2 * (7 + 2) * 5
    assert after.requests - before.requests == 1 + 2 * (7 + 2)
    assert results.servers[0].takes_ignore_eos
    assert results.servers[0].counts_tokens


def test_arrivals_at_a_rate(server):
    (row,) = load_rows(bench(config(server, rate=(200.0,), num_requests=20, output_len=2)))
    assert (row.rate, row.concurrency, row.requests) == (200.0, None, 20)
    assert row.requests_per_s < 800


def test_seconds_end_a_level(server):
    (row,) = load_rows(bench(config(server, concurrency=(2,), seconds=0.2, output_len=2)))
    assert row.requests >= 2
    assert 0.1 < row.seconds < 10


def test_lengths_spread(server, folder):
    asked = config(
        server, tokenizer=folder, concurrency=(4,), num_requests=40, output_len=8, spread=0.5
    )
    (row,) = load_rows(bench(asked))
    assert row.output_tokens == row.asked_tokens
    assert row.prompt_tokens != 40 * 8
    assert 40 * 4 < row.prompt_tokens < 40 * 12


def test_several_turns_of_a_chat(server):
    asked = config(
        server, mix="multi-turn", turns=3, concurrency=(2,), num_requests=6, output_len=3
    )
    (row,) = load_rows(bench(asked))
    assert (row.requests, row.failed) == (6, 0)
    assert row.output_tokens == 18


def test_streams_beside_long_prompts(server):
    asked = config(
        server, mix="long-prefill", concurrency=(3,), num_requests=2, long_len=40, output_len=160
    )
    results = bench(asked)
    (row,) = results.rows
    assert isinstance(row, LongPromptRow)
    assert (row.long_prompts, row.failed, row.concurrency) == (2, 0, 3)
    assert row.idle_itl_ms is not None
    assert row.busy_itl_ms is not None
    assert row.idle_itl_ms.count >= 2 * 3 * 30  # a quarter of 160, but for the first ones
    assert row.busy_itl_ms.count >= 2 * 3
    assert row.p99_ratio == pytest.approx(row.busy_itl_ms.p99 / row.idle_itl_ms.p99)
    assert row.prompt_tokens is not None
    assert row.prompt_tokens > 40
    until(server.idle)  # the streams were cut, and the server noticed


def test_streams_that_are_too_short_are_told(server):
    asked = config(
        server, mix="long-prefill", concurrency=(2,), num_requests=1, long_len=300, output_len=4
    )
    with pytest.raises(ServerError, match=r"ended after \d+ tokens.*raise --output-len"):
        bench(asked)


def test_the_command_line(server, tmp_path, capsys):
    flags = ["bench", "serve", "--base-url", server.url, server.url, "--label", "a", "b"]
    flags += ["--concurrency", "2", "--rate", "100", "--num-requests", "4", "--output-len", "3"]
    flags += ["--input-len", "8", "--rounds", "2", "--out", str(tmp_path / "found")]
    assert main(flags) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].split()[:3] == ["server", "load", "requests"]
    assert lines[0].endswith("x b") or "x b" in lines[0]
    assert lines[1].startswith("a       2 at once")
    assert lines[-1] == str(tmp_path / "found")
    assert "requests 4/4" in err
    found = json.loads((tmp_path / "found" / "results.json").read_text())
    assert [row["round"] for row in found["rounds"]] == [0, 0, 1, 1] * 2
    assert [row["label"] for row in found["rounds"]] == ["a", "b", "a", "b"] * 2
    assert found["config"]["num_requests"] == 4
    of_a = [row for row in found["rows"] if row["label"] == "a"]
    assert all(row["ratio"]["rounds"] == 2 for row in of_a)
    assert (tmp_path / "found" / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "found" / "report.txt").read_text().splitlines()[1] == lines[1]
    assert main(flags) == 1
    assert "already exists" in capsys.readouterr().err


def test_the_plot_of_long_prompts_and_json(server, tmp_path, capsys):
    flags = ["bench", "serve", "--base-url", server.url, "--mix", "long-prefill", "--json"]
    flags += ["--concurrency", "2", "--num-requests", "1", "--long-len", "40"]
    flags += ["--output-len", "120", "--input-len", "8", "--out", str(tmp_path / "found")]
    assert main(flags) == 0
    row = json.loads(capsys.readouterr().out)["rows"][0]
    assert row["long_prompts"] == 1
    assert row["busy_itl_ms"]["p99"] > 0
    assert (tmp_path / "found" / "plot.png").read_bytes().startswith(b"\x89PNG")
