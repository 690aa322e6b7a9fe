"""Streams over a real socket: their frame, their errors, and clients that leave."""

import asyncio
import json
import threading

import httpx
import pytest
from fastapi import FastAPI, Request

from llmlab.errors import LabError, RequestError, ServerError
from llmlab.serve.config import ServeConfig
from llmlab.serve.envelope import handle
from llmlab.serve.server import listen, running_app
from llmlab.serve.sse import EventStream


class Counting:
    """An application that streams what a test asks for."""

    def __init__(self) -> None:
        self.closed = threading.Event()
        self.app = FastAPI()
        self.app.add_exception_handler(LabError, handle)
        self.app.add_api_route("/{kind}", self.answer)

    async def answer(self, kind: str, request: Request):
        return EventStream(self.events(kind))

    async def events(self, kind):
        try:
            if kind == "refused":
                raise RequestError("too many", status=429)
            for number in range(3):
                yield {"number": number, "text": "line\nbreak \u2028 é"}
            if kind == "fails":
                raise ServerError("the engine has stopped")
            if kind == "breaks":
                raise KeyError("secret")
            if kind == "endless":
                await asyncio.Event().wait()
        finally:
            self.closed.set()


@pytest.fixture
def counting():
    return Counting()


@pytest.fixture
def client(counting, tmp_path):
    config = ServeConfig(model=tmp_path, shutdown_timeout_s=1)
    with listen("127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with running_app(counting.app, listener, config), httpx.Client(base_url=url) as client:
            yield client


def test_frame(client, counting):
    response = client.get("/whole")
    assert response.headers["cache-control"] == "no-cache"
    lines = [line for line in response.iter_lines() if line]
    assert len(lines) == 4
    assert lines[-1] == "data: [DONE]"
    first = json.loads(lines[0].removeprefix("data: "))
    assert first == {"number": 0, "text": "line\nbreak \u2028 é"}
    assert counting.closed.is_set()


def test_an_error_before_the_first_event_is_a_status(client):
    response = client.get("/refused")
    assert response.status_code == 429
    assert response.json()["error"]["message"] == "too many"


@pytest.mark.parametrize("kind", ["fails", "breaks"])
def test_a_later_error_is_the_last_event(client, kind):
    lines = [line for line in client.get(f"/{kind}").iter_lines() if line]
    assert len(lines) == 4
    error = json.loads(lines[-1].removeprefix("data: "))["error"]
    assert error["type"] == "server_error"
    assert "secret" not in error["message"]


def test_a_client_that_leaves_closes_the_generator(client, counting):
    with client.stream("GET", "/endless") as response:
        next(response.iter_lines())
    assert counting.closed.wait(timeout=10)


def test_a_stream_cut_by_shutdown_is_closed(counting, tmp_path):
    config = ServeConfig(model=tmp_path, shutdown_timeout_s=0)
    with listen("127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with httpx.Client(base_url=url) as client:
            with running_app(counting.app, listener, config):
                response = client.send(client.build_request("GET", "/endless"), stream=True)
                lines = response.iter_lines()
                next(lines)
            assert counting.closed.is_set()
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)
