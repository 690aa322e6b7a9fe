"""The asking side of the OpenAI API: find the model, stream one answer, take the time.

What goes wrong with a request becomes the `error` of its trace and is counted; what goes wrong
before there is any load raises. Not here: what is asked, and when (conversations.py, load.py).
Reference: OpenAI's published API description; `ignore_eos` is vLLM's addition to it.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from llmlab.errors import MissingExtraError, ServerError, did_you_mean
from llmlab.serve.bench.traces import Trace

try:
    import httpx
except ImportError as error:
    raise MissingExtraError("httpx", "serve") from error

_REFUSED = (httpx.codes.BAD_REQUEST, httpx.codes.UNPROCESSABLE_ENTITY)
_EXTRAS: tuple[dict[str, Any], ...] = (
    {"ignore_eos": True, "stream_options": {"include_usage": True}},
    {"stream_options": {"include_usage": True}},
    {},
)
"""What servers may not know, tried in this order."""

OnChunk = Callable[[float], None]
"""Is told the moment of each event with text."""


def unheard(moment_s: float) -> None:
    """Do nothing with a moment."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What one request asks."""

    prompt: str | list[int] | list[dict[str, str]]
    """Text, token ids, or the messages of a chat."""
    num_tokens: int
    """Tokens of the answer."""


@dataclass(frozen=True)
class Target:
    """A server that has answered once."""

    label: str
    url: str
    """Up to and with /v1."""
    model: str
    extras: Mapping[str, Any]
    """Fields beside OpenAI's own that it takes."""
    temperature: float
    timeout_s: float
    http: httpx.AsyncClient = field(repr=False)

    @property
    def takes_ignore_eos(self) -> bool:
        """Whether answers can be made exactly as long as asked."""
        return "ignore_eos" in self.extras

    @property
    def counts_tokens(self) -> bool:
        """Whether the server says how many tokens an answer had."""
        return "stream_options" in self.extras

    async def ask(self, question: Question, on_chunk: OnChunk = unheard) -> Trace:
        """Stream one answer; never raises for what a server does."""
        reading = _Reading(question, on_chunk)
        try:
            async with asyncio.timeout(self.timeout_s):
                await self._stream(question, reading)
        except TimeoutError:
            return reading.failed(f"no end after {self.timeout_s:g} s")
        except httpx.HTTPError as error:
            return reading.failed(f"{type(error).__name__}: {error}".rstrip(": "))
        except _Refused as error:
            return reading.failed(str(error), error.status)
        except ServerError as error:
            return reading.failed(str(error))
        return reading.trace()

    async def _stream(self, question: Question, reading: "_Reading") -> None:
        is_chat = isinstance(question.prompt, list) and isinstance(question.prompt[0], dict)
        route = "chat/completions" if is_chat else "completions"
        body = {
            "model": self.model,
            "messages" if is_chat else "prompt": question.prompt,
            "max_tokens": question.num_tokens,
            "temperature": self.temperature,
            "stream": True,
            **self.extras,
        }
        async with self.http.stream("POST", f"{self.url}/{route}", json=body) as reply:
            if reply.status_code != httpx.codes.OK:
                raise _Refused(reply.status_code, await reply.aread())
            async for line in reply.aiter_lines():
                if line.startswith("data:") and reading.took(line[5:].strip()):
                    return
        raise ServerError("the stream broke off")


class _Refused(ServerError):
    """An HTTP status other than 200."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        super().__init__(f"HTTP {status}: {_message(body)}")


class _Reading:
    """A trace in the making."""

    def __init__(self, question: Question, on_chunk: OnChunk) -> None:
        self._question = question
        self._on_chunk = on_chunk
        self._chunk_s: list[float] = []
        self._texts: list[str] = []
        self._usage: Mapping[str, Any] = {}
        self._is_complete = False
        self._sent_s = time.perf_counter()

    def took(self, data: str) -> bool:
        """Take one event; True after the last.

        Raises:
            ServerError: it tells of an error, or is none of the API's.
        """
        now_s = time.perf_counter()
        if data == "[DONE]":
            if not self._is_complete:
                raise ServerError("the stream ended without a finish_reason")
            return True
        try:
            event = json.loads(data)
            if "error" in event:
                raise ServerError(f"the stream failed: {_message(data.encode())}")
            self._usage = event.get("usage") or self._usage
            choices = event.get("choices") or []
            text = _text(choices[0]) if choices else ""
            ends = bool(choices) and choices[0].get("finish_reason") is not None
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            raise ServerError(f"the stream has {data[:60]!r}, which is no event") from error
        # Tokens without text (half characters, special tokens) count with the text that follows.
        if text or (ends and not self._chunk_s):
            self._chunk_s.append(now_s)
            self._texts.append(text)
            self._on_chunk(now_s)
        self._is_complete = self._is_complete or ends
        return False

    def failed(self, error: str, status: int | None = None) -> Trace:
        """Return what came until an error."""
        return replace(self.trace(), error=error, status=status)

    def trace(self) -> Trace:
        """Return what came."""
        details = self._usage.get("prompt_tokens_details") or {}
        return Trace(
            sent_s=self._sent_s,
            end_s=time.perf_counter(),
            chunk_s=tuple(self._chunk_s),
            num_asked=self._question.num_tokens,
            num_prompt=self._usage.get("prompt_tokens") or 0,
            num_output=self._usage.get("completion_tokens") or len(self._chunk_s),
            num_cached=details.get("cached_tokens") or 0,
            text="".join(self._texts),
        )


@asynccontextmanager
async def http_client(api_key: str | None, timeout_s: float) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client that opens as many connections as there are requests."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, 10))
    async with httpx.AsyncClient(headers=headers, limits=limits, timeout=timeout) as client:
        yield client


async def connected(
    http: httpx.AsyncClient,
    *,
    label: str,
    base_url: str,
    model: str | None,
    question: Question,
    temperature: float,
    timeout_s: float,
) -> Target:
    """Find the model and which fields the server takes, by one short answer.

    Args:
        http: the client for all its requests.
        label: its name in tables.
        base_url: with or without /v1.
        model: None takes the first one listed.
        question: a question like those to come.
        temperature: of all requests.
        timeout_s: of one request.

    Raises:
        ServerError: nobody answers there, the model is not served, or the question is refused.
    """
    url = base_url.rstrip("/")
    url = url if url.endswith("/v1") else f"{url}/v1"
    name = await _model(http, url, model)
    error = None
    for extras in _EXTRAS:
        target = Target(label, url, name, extras, temperature, timeout_s, http)
        trace = await target.ask(question)
        if (error := trace.error) is None:
            return target
        if trace.status not in _REFUSED:
            break
    raise ServerError(f"{url} does not answer a first request: {error}")


async def _model(http: httpx.AsyncClient, url: str, wanted: str | None) -> str:
    try:
        reply = await http.get(f"{url}/models")
        names = [str(card["id"]) for card in reply.raise_for_status().json()["data"]]
    except httpx.HTTPStatusError as error:
        if wanted is not None:  # not every server lists models; a first question will tell
            return wanted
        raise ServerError(
            f"{url}/models answered {error.response.status_code}: "
            f"{_message(error.response.content)}; check --base-url and --api-key-file, or name "
            "the --model"
        ) from error
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise ServerError(
            f"{url} is not a URL ({error}); give --base-url like http://127.0.0.1:8000"
        ) from error
    except httpx.HTTPError as error:
        raise ServerError(
            f"no server answers at {url} ({type(error).__name__}); start one with `llmlab serve`, "
            "or check --base-url"
        ) from error
    except (ValueError, TypeError, LookupError) as error:
        raise ServerError(f"{url}/models lists no models; check --base-url") from error
    if not names:
        raise ServerError(f"{url} lists no model; load one there first")
    if wanted is not None and wanted not in names:
        raise ServerError(f"{url} does not serve {wanted!r}{did_you_mean(wanted, names)}")
    return wanted or names[0]


def _text(choice: Mapping[str, Any]) -> str:
    delta = choice.get("delta")
    return (choice.get("text") if delta is None else delta.get("content")) or ""


def _message(body: bytes) -> str:
    """Return what an error's body says, in one short line."""
    try:
        value = json.loads(body)
    except ValueError:
        value = None
    if isinstance(value, dict):
        error = value.get("error", value.get("detail", value))
        found = error.get("message") if isinstance(error, dict) else error
        if isinstance(found, str):
            return found[:200]
    return body[:200].decode("utf-8", errors="replace").strip() or "no message"
