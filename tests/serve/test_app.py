"""The routes, through OpenAI's own client and raw HTTP, judged by OpenAI's published schema."""

import asyncio
import json
import socket
from itertools import pairwise

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.serve.logprobs import token_text
from llmlab.serve.schema import INERT, ChatRequest, CompletionRequest
from tests.serve.live import live, until
from tests.serve.openai_schema import assert_is
from tests.tiny import tiny_model_folder

CHAT = [{"role": "user", "content": "Where is the cat?"}]
FIELDS = {*CompletionRequest.model_fields, *ChatRequest.model_fields, *INERT, "tokens", "foo"}
GREEDY = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with live(tiny_model_folder(tmp_path_factory.mktemp("model"))) as server:
        yield server


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def events(response):
    """The JSON of each event, after checking the frame around them."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    blocks = response.text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    assert all(block.startswith("data: ") for block in blocks[:-1])
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


def refusal(response, status, code=None):
    """The `error` object, after checking the envelope."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    return error


# What each route answers


def test_models(server, client):
    card = server.client.get("/v1/models/tiny").json()
    assert server.client.get("/v1/models").json() == {"object": "list", "data": [card]}
    assert card["max_model_len"] == server.engine.max_model_len
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert refusal(server.client.get("/v1/models/other"), 404, "model_not_found")


def test_health(server):
    body = server.client.get("/health").json()
    assert body == {"status": "ok", "running": 0, "waiting": 0}


def test_tokenize_and_back(server):
    tokenizer = server.engine.tokenizer
    text = "The cat 🙂<|im_end|>"
    body = server.post("/tokenize", prompt=text).json()
    assert body["tokens"] == [*tokenizer.bos_ids, *tokenizer.encode(text, allow_special=True)]
    assert body["count"] == len(body["tokens"])
    assert body["max_model_len"] == server.engine.max_model_len
    bare = server.post("/tokenize", prompt=text, add_special_tokens=False).json()["tokens"]
    assert server.post("/detokenize", tokens=bare).json() == {"prompt": text}
    assert "999999" in refusal(server.post("/detokenize", tokens=[999999]), 400)["message"]


def test_tokenizer_info(server):
    body = server.client.get("/tokenizer_info").json()
    assert body["eos_token"] == "<|endoftext|>"
    assert body["pad_token"] == "<|pad|>"
    assert "im_start" in body["chat_template"]


def test_shapes_of_models_and_errors_are_openais(server):
    assert_is("ListModelsResponse", server.client.get("/v1/models").json())
    assert_is("Model", server.client.get("/v1/models/tiny").json())
    assert_is("ErrorResponse", server.client.get("/nothing").json())
    assert_is("ErrorResponse", server.post("/v1/completions", prompt="x", foo=1).json())


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
def test_shapes_are_openais(server, route):
    is_chat = "chat" in route
    what = {"messages": CHAT} if is_chat else {"prompt": "The cat", "echo": True}
    what |= {"logprobs": True, "top_logprobs": 2} if is_chat else {"logprobs": 2}
    whole = "CreateChatCompletionResponse" if is_chat else "CreateCompletionResponse"
    chunk = "CreateChatCompletionStreamResponse" if is_chat else "CreateCompletionResponse"
    assert_is(whole, server.post(route, **what, **GREEDY, n=2).json())
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    for event in events(server.post(route, **what, **GREEDY, **stream)):
        assert_is(chunk, event)


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1.5, "seed": 7}])
def test_streamed_and_whole_answers_are_the_same(server, route, n, sampling):
    is_chat = "chat" in route
    what = {"messages": CHAT, "logprobs": True} if is_chat else {"prompt": "The", "logprobs": 1}
    asked = {**what, **sampling, "n": n, "max_tokens": 12}
    whole = server.post(route, **asked).json()
    stream = server.post(route, **asked, stream=True, stream_options={"include_usage": True})
    *chunks, last = events(stream)
    assert last["choices"] == []
    for usage in (last["usage"], whole["usage"]):
        del usage["prompt_tokens_details"]  # the second answer finds what the first one left
    assert last["usage"] == whole["usage"]
    assert {chunk["id"] for chunk in chunks} == {last["id"]}
    assert all(chunk["usage"] is None and len(chunk["choices"]) == 1 for chunk in chunks)
    for choice in whole["choices"]:
        parts = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == choice["index"]]
        reasons = [part["finish_reason"] for part in parts]
        assert reasons == [None] * (len(parts) - 1) + [choice["finish_reason"]]
        if is_chat:
            assert parts[0]["delta"] == {"role": "assistant", "content": ""}
            assert parts[-1]["delta"] == {}
            text = "".join(part["delta"].get("content", "") for part in parts)
            assert text == choice["message"]["content"]
            entries = [e for part in parts if part["logprobs"] for e in part["logprobs"]["content"]]
            assert entries == choice["logprobs"]["content"]
        else:
            assert "".join(part["text"] for part in parts) == choice["text"]
            offsets = [o for part in parts for o in part["logprobs"]["text_offset"]]
            assert offsets == choice["logprobs"]["text_offset"]


def test_official_client(client):
    whole = client.completions.create(model="tiny", prompt="The cat", max_tokens=6, temperature=0)
    stream = client.completions.create(
        model="tiny", prompt="The cat", max_tokens=6, temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text
    chat = client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=6, temperature=0)
    chunks = client.chat.completions.create(
        model="tiny", messages=CHAT, max_completion_tokens=6, temperature=0, stream=True
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == chat.choices[0].message.content
    # The answer goes back into the conversation as the client gives it.
    turn = [*CHAT, chat.choices[0].message.model_dump(), CHAT[0]]
    assert client.chat.completions.create(model="tiny", messages=turn, max_tokens=2).choices


def test_official_async_client(server):
    async def ask(client, seed):
        asked = {"model": "tiny", "messages": CHAT, "max_tokens": 8, "seed": seed}
        whole = await client.chat.completions.create(**asked)
        stream = await client.chat.completions.create(**asked, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert text == whole.choices[0].message.content

    async def many():
        url = f"{server.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            await asyncio.gather(*(ask(client, seed) for seed in range(8)))

    asyncio.run(many())
    until(server.idle)


# What the fields do


def test_prompts_as_text_and_as_ids_are_the_same(server):
    tokenizer = server.engine.tokenizer
    texts = ["The cat", "def add"]
    ids = [[*tokenizer.bos_ids, *tokenizer.encode(text)] for text in texts]
    both = server.post("/v1/completions", prompt=texts, **GREEDY, n=2).json()
    same = server.post("/v1/completions", prompt=ids, **GREEDY, n=2).json()
    assert [choice["index"] for choice in both["choices"]] == [0, 1, 2, 3]
    assert both["choices"] == same["choices"]
    for prompt, choice in zip((texts[0], ids[1]), both["choices"][1:3], strict=True):
        alone = server.post("/v1/completions", prompt=prompt, **GREEDY).json()
        assert alone["choices"][0]["text"] == choice["text"]
    num_prompt = sum(map(len, ids))
    assert both["usage"] == {
        "prompt_tokens": num_prompt,
        "completion_tokens": 32,
        "total_tokens": num_prompt + 32,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_seed(server):
    asked = {"prompt": "The cat", "max_tokens": 16, "temperature": 2, "ignore_eos": True}
    first, again, other = (
        [c["text"] for c in server.post("/v1/completions", **asked, seed=s, n=2).json()["choices"]]
        for s in (1, 1, 3)
    )
    assert first == again
    assert len({*first, *other}) == 4
    second = server.post("/v1/completions", **asked, seed=2).json()["choices"][0]["text"]
    assert second == first[1]  # choice i takes seed + i


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
def test_usage_counts_what_was_in_the_cache(server, route):
    text = "The dog sat on the log, and the cat sat on the mat. " * 3
    is_chat = "chat" in route
    what = {"messages": [{"role": "user", "content": text}]} if is_chat else {"prompt": text}
    asked = {**what, "max_tokens": 2, "n": 3, "cache_salt": route}
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    first = server.post(route, **asked).json()["usage"]
    again = events(server.post(route, **asked, **stream))[-1]["usage"]
    assert first["prompt_tokens_details"] == {"cached_tokens": 0}
    full_pages = (first["prompt_tokens"] - 1) // server.engine.config.page_len
    assert full_pages > 1
    found = full_pages * server.engine.config.page_len
    assert again["prompt_tokens_details"] == {"cached_tokens": found}
    other = server.post(route, **{**asked, "cache_salt": "another"}).json()["usage"]
    assert other == first


def test_choices_share_their_prompt(server):
    tokenizer = server.engine.tokenizer
    texts = ["The cat sat", "def add", "def add"]
    before = server.engine.stats()
    answer = server.post("/v1/completions", prompt=texts, n=4, cache_salt="x", **GREEDY).json()
    after = server.engine.stats()
    assert len({choice["text"] for choice in answer["choices"][4:]}) == 1
    read = sum(len([*tokenizer.bos_ids, *tokenizer.encode(text)]) for text in texts[:2])
    assert after.prefix_queries - before.prefix_queries == read
    assert after.copies - before.copies >= 2


def test_default_lengths(server):
    completion = server.post("/v1/completions", prompt="The", ignore_eos=True).json()
    assert completion["usage"]["completion_tokens"] == 16
    assert completion["choices"][0]["finish_reason"] == "length"
    chat = server.post("/v1/chat/completions", messages=CHAT, ignore_eos=True).json()
    assert chat["usage"]["total_tokens"] == server.engine.max_model_len
    assert chat["choices"][0]["finish_reason"] == "length"


def test_stop_is_left_out(server):
    asked = {"prompt": "The cat", **GREEDY, "max_tokens": 24}
    text = server.post("/v1/completions", **asked).json()["choices"][0]["text"]
    stop = text[len(text) // 2 :][:3]
    for stream in (False, True):
        response = server.post("/v1/completions", **asked, stop=stop, stream=stream)
        parts = [e["choices"][0] for e in (events(response) if stream else [response.json()])]
        assert "".join(part["text"] for part in parts) == text[: text.index(stop)]
        assert parts[-1]["finish_reason"] == "stop"


def test_logit_bias_forces_and_stop_token_ids_end(server):
    token = server.engine.tokenizer.encode("cat")[0]
    asked = {"prompt": "The", **GREEDY, "logit_bias": {str(token): 100}}
    body = server.post("/v1/completions", **asked).json()
    assert body["choices"][0]["text"] == server.engine.tokenizer.decode([token] * 8)
    body = server.post("/v1/completions", **asked, stop_token_ids=[token]).json()
    assert body["usage"]["completion_tokens"] == 1
    assert body["choices"][0]["finish_reason"] == "stop"


# Log-probabilities, as lm-eval reads them


def scored(server, ids, **fields):
    body = server.post(
        "/v1/completions", prompt=[ids], temperature=0, logprobs=1, echo=True, seed=1234, **fields
    ).json()
    return body["choices"][0]


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_scoring_a_prompt(server, max_tokens):
    tokenizer = server.engine.tokenizer
    ids = tokenizer.encode("The cat sat on the 🙂 汉字.")
    choice = scored(server, ids, max_tokens=max_tokens)
    logprobs = choice["logprobs"]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert len(logprobs[name]) == len(ids) + max_tokens, name
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    assert all(value <= 0 for value in logprobs["token_logprobs"][1:])
    for token, value, top in zip(
        *(logprobs[name][1:] for name in ("tokens", "token_logprobs", "top_logprobs")),
        strict=True,
    ):
        assert top[token] == value
        assert max(top.values()) >= value  # lm-eval's is_greedy compares these for equality
    assert choice["text"].startswith(tokenizer.decode(ids))
    offsets = logprobs["text_offset"]
    assert offsets[0] == 0
    assert all(a <= b for a, b in pairwise(offsets))
    whole = [i for i, token in enumerate(logprobs["tokens"]) if not token.startswith("bytes:")]
    for i in whole[:-1]:
        assert choice["text"][offsets[i] :].startswith(logprobs["tokens"][i])


def test_prompt_logprobs_are_the_models_own(server):
    """What is generated greedily is, read back as a prompt, greedy at every place."""
    ids = server.engine.tokenizer.encode("The cat")
    asked = {"prompt": [ids], **GREEDY, "logprobs": 1}
    generated = server.post("/v1/completions", **asked).json()["choices"][0]["logprobs"]
    choice = server.post("/v1/completions", **asked, echo=True).json()["choices"][0]
    assert choice["logprobs"]["tokens"][len(ids) :] == generated["tokens"]
    assert choice["logprobs"]["token_logprobs"][len(ids) :] == pytest.approx(
        generated["token_logprobs"],
        abs=1e-5,  # float32, another batch shape
    )
    for value, top in zip(generated["token_logprobs"], generated["top_logprobs"], strict=True):
        assert value == max(top.values())


def test_byte_tokens_keep_keys_of_their_own(server):
    ids = server.engine.tokenizer.encode("🙂")
    asked = {"prompt": [ids], "max_tokens": 1, "logprobs": 20, "temperature": 0}
    top = server.post("/v1/completions", **asked).json()["choices"][0]["logprobs"]["top_logprobs"]
    assert len(top[0]) == 20
    assert not any("\ufffd" in key for key in top[0])


def test_echo_without_logprobs(server):
    choice = server.post("/v1/completions", prompt="The cat", echo=True, max_tokens=0).json()
    assert choice["choices"][0]["text"] == "The cat"
    assert choice["choices"][0]["logprobs"] is None
    assert choice["usage"]["completion_tokens"] == 0


def test_chat_logprobs(server):
    asked = {"messages": CHAT, **GREEDY, "logprobs": True, "top_logprobs": 3}
    content = server.post("/v1/chat/completions", **asked).json()["choices"][0]["logprobs"]
    assert len(content["content"]) == 8
    for entry in content["content"]:
        assert len(entry["top_logprobs"]) == 3
        values = [top["logprob"] for top in entry["top_logprobs"]]
        assert values == sorted(values, reverse=True)
        assert token_text(bytes(entry["bytes"])) == entry["token"]
    without = server.post("/v1/chat/completions", **{**asked, "top_logprobs": 0}).json()
    assert without["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


# Refusals


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
