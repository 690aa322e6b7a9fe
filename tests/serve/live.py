"""A real server on a loopback port, whose engine the test can look into."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from llmlab.serve.app import create_app
from llmlab.serve.async_engine import AsyncEngine
from llmlab.serve.config import ServeConfig
from llmlab.serve.server import listen, running_app


@dataclass(frozen=True)
class Live:
    """A running server."""

    url: str
    engine: AsyncEngine
    client: httpx.Client

    def post(self, path: str, **body: Any) -> httpx.Response:
        """Post a JSON body."""
        return self.client.post(path, json=body)

    def idle(self) -> bool:
        """Whether nothing runs or waits and every page is free."""
        stats = self.engine.stats()
        return stats.running == stats.waiting == 0 and stats.free_pages == stats.num_pages


def tiny_serve_config(folder: Path, **fields: Any) -> ServeConfig:
    """A config with a small cache and any free port."""
    small: dict[str, Any] = {"port": 0, "kv_memory_mb": 8, "dtype": "float32"}
    return ServeConfig(model=folder, **(small | fields))


@contextmanager
def live(folder: Path, api_keys: tuple[str, ...] = (), **fields: Any) -> Iterator[Live]:
    """Serve a model folder under the name `tiny`."""
    config = tiny_serve_config(folder, name="tiny", shutdown_timeout_s=1, **fields)
    with listen(config.host, 0) as listener, AsyncEngine(config.engine) as engine:
        app = create_app(engine, name="tiny", api_keys=api_keys, lora_root=config.lora_root)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with (
            running_app(app, listener, config),
            httpx.Client(base_url=url, timeout=30) as client,
        ):
            yield Live(url, engine, client)


def until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    """Wait for something that another thread brings about; fail when it does not."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def break_steps(engine: AsyncEngine) -> None:
    """Make every forward pass fail from now on: no layer in the cache, no step recorded."""
    runner = engine._engine._runner
    runner._cache._layers.clear()
    if runner._tapes is not None:
        runner._tapes._recorded.clear()


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The JSON of each event, after checking the frame around them."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    blocks = response.text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    assert all(block.startswith("data: ") for block in blocks[:-1])
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


def refusal(response: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """The `error` object, after checking the envelope."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    return error
