"""The routes over several replicas: health, and the error a client sees when one dies."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmlab.errors import ConfigError
from llmlab.serve.app import create_app
from llmlab.serve.server import listen, running_app
from tests.serve.live import tiny_serve_config, until
from tests.serve.replicas.local import LocalReplicas, local_engine
from tests.tiny import tiny_model_folder

GREEDY = {"prompt": "The cat", "max_tokens": 40, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("model"))


@contextmanager
def serving(folder: Path, **how: Any) -> Iterator[tuple[httpx.Client, LocalReplicas]]:
    config = tiny_serve_config(folder, shutdown_timeout_s=1)
    with (
        listen(config.host, 0) as listener,
        local_engine(config.engine, **how) as (engine, replicas),
        running_app(create_app(engine, name="tiny"), listener, config),
        httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}") as client,
    ):
        yield client, replicas


@pytest.fixture
def served(folder):
    with serving(folder) as both:
        yield both


def test_answers_are_the_same_wherever_they_come_from(served):
    client, replicas = served
    texts = {client.post("/v1/completions", json=GREEDY).json()["choices"][0]["text"]}
    replicas.kill(0)
    until(lambda: len(replicas.started) == 3)
    texts.add(client.post("/v1/completions", json=GREEDY).json()["choices"][0]["text"])
    assert len(texts) == 1
    assert client.get("/v1/models").json()["data"][0]["max_model_len"] == 128


def test_choices_structures_and_usage_are_those_of_one_engine(served):
    client, replicas = served
    text = "The dog sat on the log, and the cat sat on the mat. " * 2
    asked = {"prompt": text, "n": 3, "structured_outputs": {"regex": "[ab]{4}"}, "temperature": 2}
    for cached in (0, 16):
        body = client.post("/v1/completions", json=asked).json()
        assert all(re.fullmatch("[ab]{4}", choice["text"]) for choice in body["choices"])
        assert body["usage"]["prompt_tokens_details"]["cached_tokens"] >= cached
    assert sorted(replica.replica._engine.stats().requests for replica in replicas.started) == [
        0,
        6,
    ]
    refused = client.post("/v1/completions", json=asked | {"structured_outputs": {"regex": "(("}})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "structured_outputs.regex"


def test_a_stream_ends_with_an_error_event_when_its_replica_dies(served):
    client, replicas = served
    body = GREEDY | {"max_tokens": 110, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as response:
        lines = response.iter_lines()
        assert "choices" in json.loads(next(lines).removeprefix("data: "))
        replicas.kill(0)
        events = [json.loads(line.removeprefix("data: ")) for line in lines if "{" in line]
    error = events[-1]["error"]
    assert error["type"] == "server_error"
    assert error["code"] == "engine_unavailable"
    assert "part of the answer had been sent; send the request again" in error["message"]


def test_health_counts_the_living_until_none_is_left(folder):
    with serving(folder, num_good=2) as (client, replicas):
        health = client.get("/health").json()
        assert health == {"status": "ok", "running": 0, "waiting": 0, "replicas": 2}
        replicas.kill(0)
        until(lambda: client.get("/health").json().get("replicas") == 1)
        assert client.post("/v1/completions", json=GREEDY).is_success
        replicas.kill(1)
        until(lambda: client.get("/health").status_code == 503)
        response = client.post("/v1/completions", json=GREEDY)
        assert response.status_code == 503
        assert "every replica died again and again" in response.json()["error"]["message"]


def test_the_number_of_replicas_is_checked(folder):
    with pytest.raises(ConfigError, match="replicas=0 must be at least 1"):
        tiny_serve_config(folder, replicas=0)
