"""A model behind a URL: the same numbers as the folder, and servers that misbehave."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from llmlab.errors import EvalError, ServerError
from llmlab.evals import FolderModel, UrlModel
from llmlab.evals.models import Failure, GenerateRequest, Loglikelihood, TextLogprob
from llmlab.serve import ServeConfig, running_server
from tests.evals.conftest import CONTEXT_LEN, PAIRS, TEXTS

MAX_LEN = CONTEXT_LEN - 1  # a server takes the last target in the prompt as well
REQUESTS = [
    GenerateRequest(message=text, prompt=text, max_tokens=12, stop=("\n",))
    for text in ["hello", "The capital of France is", "def greet", "Grüße 🙂"]
]


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    config = ServeConfig(model=folder, port=0, dtype="float32", kv_memory_mb=64)
    with running_server(config) as url:
        yield url


def test_a_served_folder_scores_as_the_folder(folder: Path, url: str) -> None:
    local = FolderModel(folder, device="cpu", max_len=MAX_LEN)
    with UrlModel(f"{url}/v1") as served:
        assert served.name == folder.name
        for here, there in zip(
            local.loglikelihood(PAIRS), served.loglikelihood(PAIRS), strict=True
        ):
            assert isinstance(here, Loglikelihood)
            assert isinstance(there, Loglikelihood)
            assert there.logprob == pytest.approx(here.logprob, abs=1e-4)
            assert (there.is_greedy, there.num_tokens) == (here.is_greedy, here.num_tokens)
        for here, there in zip(
            local.loglikelihood_rolling(TEXTS), served.loglikelihood_rolling(TEXTS), strict=True
        ):
            assert isinstance(here, TextLogprob)
            assert isinstance(there, TextLogprob)
            assert there.logprob == pytest.approx(here.logprob, rel=1e-6, abs=1e-4)
            assert (there.num_tokens, there.num_bytes) == (here.num_tokens, here.num_bytes)


def test_a_served_folder_generates_as_the_folder(folder: Path, url: str) -> None:
    with UrlModel(url) as served:
        assert served.generate(REQUESTS) == FolderModel(folder, device="cpu").generate(REQUESTS)


Answer = Callable[[str, dict[str, Any], int], tuple[int, Any]]
"""Path, body, how often this path and body were asked before; returns status and content."""


@contextmanager
def small_server(answer: Answer) -> Iterator[str]:
    """A real HTTP server whose answers the test writes."""
    asked: dict[str, int] = {}
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self, body: dict[str, Any]) -> None:
            key = self.path + json.dumps(body, sort_keys=True)
            with lock:
                before = asked.get(key, 0)
                asked[key] = before + 1
            status, content = answer(self.path, body, before)
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self._serve({})

        def do_POST(self) -> None:
            self._serve(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def chat_only(reply: Answer) -> Answer:
    """A server that knows chats and nothing else."""

    def answer(path: str, body: dict[str, Any], before: int) -> tuple[int, Any]:
        if path == "/v1/models":
            return 200, {"data": [{"id": "small"}]}
        if path == "/v1/chat/completions":
            return reply(path, body, before)
        return 404, {"error": {"message": f"no {path}"}}

    return answer


def says(text: str) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


def test_errors_that_pass_are_tried_again() -> None:
    def reply(path: str, body: dict[str, Any], before: int) -> tuple[int, Any]:
        troubles = [(500, b"oops"), (429, {"error": {"message": "slow down"}}), (200, b"{garbage")]
        return troubles[before] if before < 3 else (200, says("fine"))

    with small_server(chat_only(reply)) as url, UrlModel(url, retry_wait_s=0) as model:
        assert model.generate(REQUESTS) == ["fine"] * len(REQUESTS)


def test_one_bad_example_costs_only_itself() -> None:
    def reply(path: str, body: dict[str, Any], before: int) -> tuple[int, Any]:
        asked = body["messages"][0]["content"]
        if asked == "hello":
            return 500, {"error": {"message": "broken for ever"}}
        if asked == "def greet":
            return 400, {"error": {"message": "no code please"}}
        return 200, says(asked.upper())

    with small_server(chat_only(reply)) as url, UrlModel(url, retry_wait_s=0) as model:
        first, second, third, fourth = model.generate(REQUESTS)
    assert isinstance(first, Failure)
    assert "no usable answer in 5 tries; last: status 500: broken for ever" in first.error
    assert second == "THE CAPITAL OF FRANCE IS"
    assert isinstance(third, Failure)
    assert "no code please" in third.error
    assert fourth == "GRÜSSE 🙂"


def test_a_refused_request_is_asked_once() -> None:
    def reply(path: str, body: dict[str, Any], before: int) -> tuple[int, Any]:
        assert before == 0
        return 400, {"error": {"message": "no"}}

    with small_server(chat_only(reply)) as url, UrlModel(url, retry_wait_s=0) as model:
        assert all(isinstance(answer, Failure) for answer in model.generate(REQUESTS))


def test_a_server_that_cannot_score_says_what_to_do() -> None:
    with (
        small_server(chat_only(lambda *_: (200, says("hi")))) as url,
        UrlModel(url, retry_wait_s=0) as model,
        pytest.raises(EvalError, match=r"no /tokenize.*short_answers"),
    ):
        model.loglikelihood(PAIRS)


def letters(body: dict[str, Any]) -> dict[str, Any]:
    """An answer of /tokenize: one token a letter."""
    prompt = body.get("prompt", "")
    return {"tokens": [ord(c) for c in prompt] if isinstance(prompt, str) else [], "count": 0}


@pytest.mark.parametrize(
    ("logprobs", "message"),
    [
        (None, "no log probabilities"),
        ({"token_logprobs": [None], "top_logprobs": [None]}, "0 log probabilities for 1 tokens"),
        ({"token_logprobs": [None, None], "top_logprobs": [None, None]}, "no log probabilities"),
    ],
)
def test_a_server_without_echo_is_named(logprobs: Any, message: str) -> None:
    def answer(path: str, body: dict[str, Any], before: int) -> tuple[int, Any]:
        return 200, {
            "/v1/models": {"data": [{"id": "small"}]},
            "/tokenizer_info": {"eos_token": "E"},
            "/tokenize": letters(body),
            "/v1/completions": {"choices": [{"logprobs": logprobs}]},
        }[path]

    with small_server(answer) as url, UrlModel(url, retry_wait_s=0) as model:
        (failed,) = model.loglikelihood([("a", "b")])
    assert isinstance(failed, Failure)
    assert message in failed.error


def test_a_server_that_must_generate_is_asked_for_one_token() -> None:
    """With max_tokens 0 refused, one token more is asked for and not scored."""

    def answer(path: str, body: dict[str, Any], before: int) -> tuple[int, Any]:
        if path == "/v1/completions" and body["max_tokens"] == 0:
            return 400, {"error": {"message": "max_tokens must be at least 1"}}
        scores = {"token_logprobs": [None, -1.5, -9], "top_logprobs": [None, {"b": -1.5}, {}]}
        return 200, {
            "/v1/models": {"data": [{"id": "small"}]},
            "/tokenizer_info": {"bos_token": "B"},
            "/tokenize": letters(body),
            "/v1/completions": {"choices": [{"logprobs": scores}]},
        }[path]

    with small_server(answer) as url, UrlModel(url, retry_wait_s=0) as model:
        assert model.loglikelihood([("a", "b")]) == [Loglikelihood(-1.5, True, 1)]


def test_a_wrong_url_is_named() -> None:
    with pytest.raises(EvalError, match="base_url='localhost:8000' is no URL"):
        UrlModel("localhost:8000")
    with pytest.raises(ServerError, match=r"http://127.0.0.1:1/v1/models gave no usable answer"):
        UrlModel("http://127.0.0.1:1", retry_wait_s=0)
