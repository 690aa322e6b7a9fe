"""Answers that end when the client goes: server-sent events, and plain work watched the same way.

Not here: what the events say. Format: the `data:` lines of the WHATWG server-sent events standard,
ended by OpenAI's `data: [DONE]`.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from llmlab.errors import LabError, MissingExtraError
from llmlab.serve.envelope import describe

try:
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send
except ImportError as error:
    raise MissingExtraError("starlette", "serve") from error

_log = logging.getLogger(__name__)

Result = TypeVar("Result")

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # a proxy in front must not hold events back
]


class ClientGone(Exception):
    """The client closed its connection before the answer was complete."""


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Do `work`, but cancel it when the client disconnects.

    Args:
        receive: the ASGI channel of the request, its body already read.
        work: what to do; its `finally` blocks have run when this returns.

    Raises:
        ClientGone: the client disconnected first.
    """
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """A response that sends each object of an async generator as one event.

    The status line is sent with the first event, so an error before it is an ordinary HTTP error;
    a later one is sent as an event and ends the stream. The generator is closed in every case.

    Args:
        events: JSON objects.
    """

    def __init__(self, events: AsyncGenerator[dict[str, Any]]) -> None:
        super().__init__()
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream; stop when the client goes."""
        try:
            await unless_gone(receive, self._send_all(send))
        except ClientGone:
            _log.info("client left during a stream")

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            first = await anext(events)
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            await _send(send, first)
            try:
                async for event in events:
                    await _send(send, event)
            except Exception as error:  # the status is sent; an event is all that is left to tell
                if not isinstance(error, LabError):
                    _log.exception("a stream failed")
                await _send(send, describe(error)[1])
            else:
                await _send(send, None)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send(send: Send, event: dict[str, Any] | None) -> None:
    """Send one event; None is the end mark."""
    # ASCII escapes: some clients break lines at U+2028 and its like.
    text = "[DONE]" if event is None else json.dumps(event)
    data = f"data: {text}\n\n".encode()
    await send({"type": "http.response.body", "body": data, "more_body": True})
