"""Structure over HTTP: what was asked for is what comes, and what cannot be is refused at once."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import openai
import pytest

from tests.serve.live import events, live, refusal, until
from tests.tiny import tiny_model_folder

CHAT = [{"role": "user", "content": "Where is the cat?"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "animal": {"enum": ["cat", "dog"]},
        "legs": {"type": "integer", "minimum": 0, "maximum": 8},
        "names": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
    },
    "required": ["animal", "legs", "names"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "pet", "schema": SCHEMA, "strict": True}}
ROUTES = {"/v1/completions": {"prompt": "The"}, "/v1/chat/completions": {"messages": CHAT}}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tiny_model_folder(tmp_path_factory.mktemp("model"), max_position_embeddings=4096)
    with live(folder) as server:
        yield server


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def text_of(choice) -> str:
    return choice["message"]["content"] if "message" in choice else choice["text"]


def test_official_client_gets_json_that_fits_its_schema(client):
    asked = {"model": "tiny", "messages": CHAT, "response_format": FORMAT, "temperature": 1.5}
    answer = client.chat.completions.create(**asked, n=8, seed=1)
    texts = [choice.message.content for choice in answer.choices]
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMA)
    assert len(set(texts)) > 1
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}
    stream = client.chat.completions.create(**asked, seed=1, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == texts[0]


def test_any_json_object(client):
    answer = client.chat.completions.create(
        model="tiny",
        messages=CHAT,
        response_format={"type": "json_object"},
        n=16,
        seed=1,
        temperature=2,
        max_tokens=50,
    )
    done = [choice for choice in answer.choices if choice.finish_reason == "stop"]
    assert done
    assert all(isinstance(json.loads(choice.message.content), dict) for choice in done)
    assert all(choice.message.content.startswith("{") for choice in answer.choices)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("structure", "pattern"),
    [
        ({"regex": "[ab]{5}c"}, "[ab]{5}c"),
        ({"choice": ["left", "right", "straight on"]}, "left|right|straight on"),
        ({"grammar": 'root ::= "x" ("+" "x"){1,3}'}, r"x(\+x){1,3}"),
        ({"json": {"type": "boolean"}}, "true|false"),
        ({"json": '{"type": "null"}'}, "null"),
    ],
)
@pytest.mark.parametrize("style", ["structured_outputs", "guided"])
def test_structured_outputs(server, route, structure, pattern, style):
    [(name, value)] = structure.items()
    fields = {"guided_" + name: value} if style == "guided" else {"structured_outputs": structure}
    body = server.post(route, **ROUTES[route], **fields, n=4, temperature=2, seed=3).json()
    assert len(body["choices"]) == 4
    for choice in body["choices"]:
        assert re.fullmatch(pattern, text_of(choice))
        assert choice["finish_reason"] == "stop"


def test_structure_goes_with_what_else_a_request_may_ask(server):
    asked = {
        "prompt": ["The", "def"],
        "n": 2,
        "response_format": FORMAT,
        "logprobs": 2,
        "ignore_eos": True,
        "min_tokens": 4,
        "presence_penalty": 1,
        "seed": 2,
        "max_tokens": 200,
    }
    for choice in server.post("/v1/completions", **asked).json()["choices"]:
        jsonschema.validate(json.loads(choice["text"]), SCHEMA)
        assert len(choice["logprobs"]["tokens"]) >= 4


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (
            {"response_format": {**FORMAT, "json_schema": {"name": "x", "schema": {"$ref": "#"}}}},
            "response_format",
        ),
        ({"structured_outputs": {"json": {"$ref": "#"}}}, "structured_outputs.json"),
        ({"structured_outputs": {"regex": "(("}}, "structured_outputs.regex"),
        ({"structured_outputs": {"grammar": "start: missing"}}, "structured_outputs.grammar"),
        ({"guided_regex": r"(a)\1"}, "guided_regex"),
        ({"guided_json": {"const": "\ud800"}}, "guided_json"),
        ({"guided_choice": ["\ud800"]}, "guided_choice[0]"),
    ],
)
def test_what_does_not_compile_is_refused_before_the_stream_starts(
    server, route, stream, fields, param
):
    before = server.engine.stats().requests
    content = json.dumps({**ROUTES[route], **fields, "stream": stream})
    kind = {"Content-Type": "application/json"}
    response = server.client.post(route, content=content, headers=kind)
    assert refusal(response, 400)["param"] == param
    assert server.engine.stats().requests == before


def test_what_cannot_be_followed_to_its_end_says_so(server):
    asked = {
        "prompt": "The",
        "structured_outputs": {"regex": "((a{1,100}){1,100}){1,100}"},
        "min_tokens": 200,
        "max_tokens": 300,
    }
    error = refusal(server.post("/v1/completions", **asked), 400)
    assert error["param"] == "structured_outputs.regex"
    assert re.match(r"regex cannot be followed beyond token \d+", error["message"])
    response = server.post("/v1/completions", **asked, stream=True)
    *chunks, last = [line for line in response.text.split("\n\n") if line]
    assert len(chunks) > 10
    assert json.loads(last.removeprefix("data: "))["error"] == error
    until(server.idle)


def slow(num_fields: int) -> dict[str, Any]:
    """A schema that takes about half a second and is refused then."""
    fields = {f"f{number}": {"type": "integer"} for number in range(num_fields)}
    return {"type": "object", "properties": fields, "additionalProperties": False}


def test_hostile_schemas_hold_up_nobody(server):
    """While they are tried, streams run and structures that are known are answered."""
    easy = {"prompt": "The", "structured_outputs": {"regex": "ab"}, "max_tokens": 4}
    assert server.post("/v1/completions", **easy).status_code == 200
    asked = {"prompt": "The", "ignore_eos": True, "stream": True, "max_tokens": 4000}
    with (
        ThreadPoolExecutor(4) as pool,
        server.client.stream("POST", "/v1/completions", json=asked) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        hostile = [
            pool.submit(server.post, "/v1/completions", prompt="x", guided_json=slow(number))
            for number in range(2_400, 2_404)
        ]
        num_events = num_answers = 0
        for line in lines:
            num_open = sum(not answer.done() for answer in hostile)
            if not num_open:
                break
            num_events += line.startswith("data: ")
            if num_open >= 2 and num_events % 20 == 1:
                num_answers += server.post("/v1/completions", **easy).status_code == 200
        for answer in hostile:
            error = refusal(answer.result(), 400)
            assert error["param"] == "guided_json"
            assert "Current row has" in error["message"]
    # They take about two seconds. Were they compiled in turn with what others wait for, no step
    # would be run and nothing answered before the last but one is done.
    assert num_events > 40
    assert num_answers >= 2
    until(server.idle)


def test_structures_in_a_stream_are_those_of_the_whole_answer(server):
    asked = {"messages": CHAT, "response_format": FORMAT, "seed": 5, "n": 2}
    whole = server.post("/v1/chat/completions", **asked).json()
    chunks = [
        event["choices"][0]
        for event in events(server.post("/v1/chat/completions", **asked, stream=True))
    ]
    for choice in whole["choices"]:
        own = [chunk["delta"] for chunk in chunks if chunk["index"] == choice["index"]]
        assert "".join(delta.get("content", "") for delta in own) == text_of(choice)
