"""What the routes refuse and how; clients that leave, a full queue, a stopped engine."""

import json
import socket

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.serve.body import INERT
from llmlab.serve.schema import ChatRequest, CompletionRequest
from tests.serve.live import live, refusal, until
from tests.tiny import tiny_model_folder

CHAT = [{"role": "user", "content": "Where is the cat?"}]
FIELDS = {*CompletionRequest.model_fields, *ChatRequest.model_fields, *INERT, "tokens", "foo"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with live(tiny_model_folder(tmp_path_factory.mktemp("model"))) as server:
        yield server


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"min_p": 2}, "min_p"),
        ({"repetition_penalty": -1}, "repetition_penalty"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"stop": ""}, "stop"),
        ({"min_tokens": 99, "max_tokens": 2}, "min_tokens"),
        ({"priority": 2**31}, "priority"),
        ({"priority": 0.5}, "priority"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"foo": 1}, "foo"),
        ({"tools": [{}]}, "tools"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [[1], []]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [999999]}, "prompt"),
        ({"prompt": [2**80]}, "prompt"),
        ({"prompt": ["a"] * 100, "n": 128}, "n"),
        ({"prompt": [1, "a"]}, "prompt[0]"),
        ({"n": 10**9}, "n"),
        ({"logprobs": 50}, "logprobs"),
    ],
)
def test_wrong_values(server, fields, param):
    response = server.post("/v1/completions", **{"prompt": "The", **fields})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "x"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        (
            {"role": "user", "content": [{"type": "image_url", "text": "x"}]},
            "messages[0].content[0].type",
        ),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "image_url"),
        ("hi", "messages[0]"),
    ],
)
def test_wrong_messages(server, message, param):
    response = server.post("/v1/chat/completions", messages=[message])
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_what_does_not_fit(server):
    most = server.engine.max_model_len
    long = [5] * most
    for fields in ({"prompt": long}, {"prompt": long[:-3], "max_tokens": 4}):
        error = refusal(server.post("/v1/completions", **fields), 400, "context_length_exceeded")
        assert str(most) in error["message"]
    chat = [{"role": "user", "content": "cat " * most}]
    response = server.post("/v1/chat/completions", messages=chat)
    refusal(response, 400, "context_length_exceeded")
    # Exactly full is fine.
    assert server.post("/v1/completions", prompt=long[:-3], max_tokens=3).status_code == 200
    scored = server.post("/v1/completions", prompt=long, max_tokens=0, echo=True, logprobs=1)
    assert scored.status_code == 200


def test_wrong_model(server, client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="gpt-4", prompt="x")
    assert caught.value.code == "model_not_found"
    assert "'tiny'" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not JSON"),
        (b"", "JSON object"),
        (b"[]", "JSON object"),
        (b'"prompt"', "JSON object"),
        (b"null", "JSON object"),
        (b"\xff\xfe", "body"),
        (b'{"prompt": ' + b"[" * 100_000, "body"),
        (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", "body"),
        (b'{"prompt": "x", "temperature": NaN}', "finite"),
        (b'{"prompt": "x", "temperature": 1e999}', "finite"),
        (b'{"prompt": "\\ud800"}', "surrogate"),
        (b'{"prompt": "x", "\\ud800": 1}', "unknown parameter"),
    ],
)
def test_broken_bodies(server, content, message):
    kind = {"Content-Type": "application/json"}
    response = server.client.post("/v1/completions", content=content, headers=kind)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert message in error["message"]
    assert len(response.content) < 2000


NUMBERS = [0, 1, -1, 2**31, 2**63, -(2**63), 10**400, 0.5, 1e308, float("inf"), float("nan")]
OTHERS = [None, True, "", "x", "\ud800", [], [0], [-1], [[]], [""], {}, {"x": 1}, {"0": 1}]
NASTY = st.sampled_from([*NUMBERS, *OTHERS])


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from(["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"]),
    st.dictionaries(st.sampled_from(sorted(FIELDS)), NASTY, max_size=4),
)
def test_nothing_a_client_sends_is_an_internal_error(server, route, fields):
    body = {"max_tokens": 1, **{name: value for name, value in fields.items() if name != "prompt"}}
    if route == "/v1/completions":
        body["prompt"] = fields.get("prompt", "The")
    elif route == "/v1/chat/completions":
        body["messages"] = fields.get("messages", CHAT)
    else:
        body = {"prompt": "x", "tokens": [1], **fields}
        del body["tokens" if route == "/tokenize" else "prompt"]
    kind = {"Content-Type": "application/json"}
    response = server.client.post(route, content=json.dumps(body), headers=kind)
    assert response.status_code in (200, 400, 404), (body, response.text)


def test_other_content_types(server):
    body = b'{"prompt": "x"}'
    headers = {"Content-Type": "text/plain"}
    response = server.client.post("/v1/completions", content=body, headers=headers)
    assert "application/json" in refusal(response, 400, "invalid_json")["message"]


def test_unknown_routes_and_methods(server):
    refusal(server.client.get("/v1/nothing"), 404, "not_found")
    response = server.client.get("/v1/completions")
    refusal(response, 405, "method_not_allowed")
    assert "POST" in response.headers["allow"]


def test_bodies_too_large(server):
    def chunks():
        for _ in range(34):
            yield b" " * 2**20

    with httpx.Client(base_url=server.url, timeout=30) as client:
        refusal(client.post("/tokenize", content=b" " * (33 * 2**20)), 413, "too_large")
    with httpx.Client(base_url=server.url, timeout=30) as client:
        headers = {"Content-Type": "application/json"}
        response = client.post("/tokenize", content=chunks(), headers=headers)
        refusal(response, 413, "too_large")


# Clients that leave


def start(server, **body):
    """Send a request over a bare socket and return the socket."""
    content = json.dumps({"prompt": "The cat", "ignore_eos": True, **body}).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    port = httpx.URL(server.url).port
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(head.encode() + content)
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_stops_the_generation(server, stream):
    room = server.engine.max_model_len - 20
    before = server.engine.stats()
    with start(server, max_tokens=room, n=16, stream=stream) as connection:
        until(lambda: server.engine.stats().generated_tokens > before.generated_tokens)
        if stream:
            assert connection.recv(15) == b"HTTP/1.1 200 OK"
    until(server.idle)
    generated = server.engine.stats().generated_tokens - before.generated_tokens
    assert generated < 16 * room


# A full queue, a stopped engine


def test_full_queue(tmp_path):
    with live(tiny_model_folder(tmp_path), max_running=1, max_waiting=1) as server:
        room = server.engine.max_model_len - 20
        with start(server, max_tokens=room, stream=True):
            until(lambda: server.engine.stats().running == 1)
            # One more fits, two do not: neither is kept.
            refusal(server.post("/v1/completions", prompt="The", n=2), 429, "queue_full")
            until(lambda: server.engine.stats().waiting == 0)
            with start(server, max_tokens=room, stream=True):
                until(lambda: server.engine.stats().waiting == 1)
                response = server.post("/v1/completions", prompt="The", stream=True)
        assert refusal(response, 429, "queue_full")["type"] == "rate_limit_error"
        assert int(response.headers["retry-after"]) >= 1
        until(server.idle)


def test_engine_stops_during_a_stream(tmp_path):
    with live(tiny_model_folder(tmp_path)) as server:
        asked = {"prompt": "The", "ignore_eos": True, "stream": True, "n": 8, "max_tokens": 100}
        with server.client.stream("POST", "/v1/completions", json=asked) as response:
            lines = response.iter_lines()
            next(lines)
            server.engine.close()
            events = [line.removeprefix("data: ") for line in lines if line]
        assert json.loads(events[-1])["error"]["type"] == "server_error"
        for response in (
            server.client.get("/health"),
            server.post("/v1/completions", prompt="The"),
            server.post("/v1/completions", prompt="The", stream=True),
        ):
            refusal(response, 503, "engine_unavailable")
