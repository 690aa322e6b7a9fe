"""A small real OpenAI-style server for tests: answers with a sentence of the first source.

The model's name decides its manners: `cites` writes [1], `plain` writes no marker, `liar` says
what no source says, `invents` cites a source that is not there, `fails`, `breaks` and `hangs`.
"""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from llmlab.rag.sentences import sentence_spans


@dataclass
class FakeServer:
    """What a test sees of the server."""

    url: str = ""
    models: tuple[str, ...] = ("cites",)
    max_model_len: int | None = None
    tokenizes: bool = True
    requests: list[dict[str, Any]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)


def first_source(prompt: str) -> str:
    """Return the text of source [1] as a model would read it."""
    found = re.search(r"^SOURCE \[1\] (\w+) [^\n]*\n(.*?)\nEND \[1\] \1$", prompt, re.S | re.M)
    assert found, prompt
    return found[2]


def _reply(model: str, messages: list[dict[str, str]]) -> str:
    source = first_source(messages[-1]["content"])
    start, end = sentence_spans(source)[0]
    sentence = " ".join(source[start:end].rstrip(".").split())
    return {
        "cites": f"{sentence} [1].",
        "plain": f"{sentence}.",
        "liar": "The committee of penguins decided it in 1802 [1].",
        "invents": f"{sentence} [9].",
    }.get(model, sentence)


class _Handler(BaseHTTPRequestHandler):
    fake: FakeServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        extra = {"max_model_len": self.fake.max_model_len} if self.fake.max_model_len else {}
        if self.path == "/v1/models":
            self._send({"object": "list", "data": [{"id": m, **extra} for m in self.fake.models]})
        else:
            self._send({"error": {"message": f"no route {self.path}"}}, 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize" and self.fake.tokenizes:
            self._send({"count": len(body["prompt"].split())})
        elif self.path == "/v1/chat/completions":
            self.fake.requests.append({**body, "authorization": self.headers["Authorization"]})
            self._chat(body)
        else:
            self._send({"error": {"message": f"no route {self.path}"}}, 404)

    def _chat(self, body: dict[str, Any]) -> None:
        if body["model"] == "fails":
            self._send({"error": {"message": "out of pages"}}, 500)
            return
        if body["model"] == "hangs":
            self.fake.released.wait(10)
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        words = re.findall(r"\s*\S+", _reply(body["model"], body["messages"]))
        for word in words[: 2 if body["model"] == "breaks" else None]:
            self._event({"choices": [{"index": 0, "delta": {"content": word}}]})
        if body["model"] != "breaks":
            self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, event: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())

    def _send(self, body: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def fake_server(**settings: Any) -> Iterator[FakeServer]:
    """Run the server on a free port of this machine."""
    fake = FakeServer(**settings)
    handler = type("Handler", (_Handler,), {"fake": fake})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    fake.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield fake
    finally:
        fake.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
