"""A small server whose answers a test chooses, to see what the load generator makes of them."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from llmlab.serve.config import ServeConfig
from llmlab.serve.server import listen, running_app


@dataclass
class Odd:
    """What it does, and what it saw.

    `script` has one word for each request, beginning with the first one after the connecting
    client's own; "ok" when it has run out.
    """

    script: list[str] = field(default_factory=list)
    unknown_fields: tuple[str, ...] = ()
    """Refused with 400."""
    with_usage: bool = True
    models: Any = field(default_factory=lambda: {"data": [{"id": "odd"}, {"id": "even"}]})
    bodies: list[dict[str, Any]] = field(default_factory=list)
    num_active: int = 0
    most_active: int = 0
    url: str = ""

    async def list_models(self, request: Request) -> Response:
        return JSONResponse(self.models, status_code=404 if self.models is None else 200)

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        for name in self.unknown_fields:
            if name in body:
                return JSONResponse({"error": {"message": f"no {name} here"}}, status_code=400)
        self.bodies.append(body)
        number = len(self.bodies) - 2
        word = self.script[number] if 0 <= number < len(self.script) else "ok"
        if word == "busy":
            return JSONResponse({"detail": f"queue of {number} is full"}, status_code=503)
        return StreamingResponse(self.stream(body, word), media_type="text/event-stream")

    async def stream(self, body: dict[str, Any], word: str) -> AsyncIterator[str]:
        self.num_active += 1
        self.most_active = max(self.most_active, self.num_active)
        try:
            for number in range(body["max_tokens"]):
                await asyncio.sleep(0)
                if word in ("breaks off", "no event", "fails", "hangs", "ends early") and number:
                    break
                last = number == body["max_tokens"] - 1
                piece = {"text": f" {number}", "delta": {"content": f" {number}"}}
                del piece["text" if "messages" in body else "delta"]
                yield event({"choices": [{**piece, "finish_reason": "length" if last else None}]})
            if word == "hangs":
                await asyncio.sleep(60)
            if word == "no event":
                yield "data: [1, 2\n\n"
            if word == "fails":
                yield event({"error": {"message": "out of memory"}})
            if word == "breaks off":
                return
            if self.with_usage:
                counts = {"prompt_tokens": 5, "completion_tokens": body["max_tokens"]}
                cached = {"prompt_tokens_details": {"cached_tokens": 2}}
                yield event({"choices": [], "usage": {**counts, **cached}})
            yield "data: [DONE]\n\n"
        finally:
            self.num_active -= 1


def event(value: Any) -> str:
    return f"data: {json.dumps(value)}\n\n"


@contextmanager
def odd_server(**fields: Any) -> Iterator[Odd]:
    odd = Odd(**fields)
    app = Starlette(
        routes=[
            Route("/v1/models", odd.list_models),
            Route("/v1/completions", odd.complete, methods=["POST"]),
            Route("/v1/chat/completions", odd.complete, methods=["POST"]),
        ]
    )
    with listen("127.0.0.1", 0) as listener:
        odd.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = ServeConfig(model=Path("none"), shutdown_timeout_s=0)
        with running_app(app, listener, config):
            yield odd
