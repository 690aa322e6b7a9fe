"""The part of the OpenAI HTTP API that answering needs: list models, count tokens, stream a chat.

Works with any server that speaks it. Not here: prompts, retries; nothing is sent anywhere but to
the base URL.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from llmlab.errors import MissingExtraError, ServerError

try:
    import httpx
except ImportError as error:
    raise MissingExtraError("httpx", "rag") from error

_BYTES_PER_TOKEN = 3
"""Cautious estimate for servers that do not count; English has about 4 bytes a token."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as the server lists it."""

    name: str
    """What requests call it."""

    context_len: int | None
    """Tokens of prompt and answer together, where the server tells (`max_model_len`)."""


class Client:
    """Talks to one server.

    Args:
        base_url: address up to and with `/v1`.
        timeout_s: seconds without a byte after which a request fails.
        api_key: bearer token, where the server wants one.
    """

    def __init__(self, base_url: str, *, timeout_s: float, api_key: str | None = None) -> None:
        self.base_url = base_url.rstrip("/")
        self._timeout_s = timeout_s
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(timeout=timeout_s, headers=headers)
        self._counts = True

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def models(self) -> list[ServedModel]:
        """List the models.

        Raises:
            ServerError: no server answers there, or not as OpenAI's would.
        """
        url = f"{self.base_url}/models"
        with self._errors(url):
            reply = _checked(self._http.get(url), url)
        listed = reply.get("data")
        if not isinstance(listed, list):
            raise ServerError(f"{url} lists no models; --base-url usually ends in /v1")
        return [
            ServedModel(str(m["id"]), _positive(m.get("max_model_len")))
            for m in listed
            if isinstance(m, dict) and "id" in m
        ]

    def count_tokens(self, text: str, model: str) -> int:
        """Count the tokens of a text: exactly where the server has `/tokenize`, else cautiously."""
        url = f"{self.base_url.removesuffix('/v1')}/tokenize"
        if self._counts:
            body = {"model": model, "prompt": text, "add_special_tokens": False}
            with self._errors(url):
                reply = self._http.post(url, json=body)
            count = _json(reply).get("count") if reply.status_code == httpx.codes.OK else None
            if isinstance(count, int):
                return count
            self._counts = False
        return -(-len(text.encode("utf-8")) // _BYTES_PER_TOKEN)

    def stream_chat(
        self,
        model: str,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int,
        temperature: float,
    ) -> Iterator[str]:
        """Yield the pieces of the model's reply as they come.

        Raises:
            ServerError: the server refuses, fails, falls silent, or breaks off.
        """
        url = f"{self.base_url}/chat/completions"
        body = {
            "model": model,
            "messages": list(messages),
            "max_tokens": max_tokens,
            "temperature": temperature,
            "stream": True,
        }
        with self._errors(url), self._http.stream("POST", url, json=body) as reply:
            if reply.status_code != httpx.codes.OK:
                reply.read()
                _checked(reply, url)
            yield from _deltas(reply.iter_lines(), url)

    @contextmanager
    def _errors(self, url: str) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException as error:
            raise ServerError(
                f"{url} sent nothing for {self._timeout_s:g} s; raise --timeout-s or lower "
                "--max-tokens"
            ) from error
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise ServerError(
                f"{url} is not a URL ({error}); give --base-url like http://127.0.0.1:8000/v1"
            ) from error
        except httpx.HTTPError as error:
            raise ServerError(
                f"no answer from {url} ({error}); start a server with `llmlab serve --model DIR` "
                "or check --base-url"
            ) from error


def _deltas(lines: Iterator[str], url: str) -> Iterator[str]:
    """Read server-sent events until the end of the reply."""
    finished = False
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        event = _parse(data, url)
        if "error" in event:
            raise ServerError(f"{url} failed: {_message(event)}; see the server's log")
        for choice in event.get("choices") or []:
            piece = (choice.get("delta") or {}).get("content")
            if piece:
                yield piece
            finished = finished or choice.get("finish_reason") is not None
    if not finished:
        raise ServerError(f"{url} broke off in the middle of its reply; see the server's log")


def _checked(reply: httpx.Response, url: str) -> dict[str, Any]:
    if reply.status_code == httpx.codes.OK:
        return _parse(reply.text, url)
    message = f"{url} answered {reply.status_code}: {_message(_json(reply)) or reply.text[:200]}"
    if reply.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise ServerError(f"{message}; give the key with --api-key-file")
    if reply.status_code == httpx.codes.NOT_FOUND:
        raise ServerError(
            f"{message}; --base-url usually ends in /v1, --model must be listed there"
        )
    raise ServerError(f"{message}; see the server's log")


def _parse(text: str, url: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ServerError(
            f"{url} answered {text[:60]!r}, which is not JSON; check --base-url"
        ) from error
    if not isinstance(value, dict):
        raise ServerError(f"{url} answered {text[:60]!r}, not an object; check --base-url")
    return value


def _json(reply: httpx.Response) -> dict[str, Any]:
    try:
        value = reply.json()
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _message(body: Mapping[str, Any]) -> str:
    error = body.get("error")
    if isinstance(error, dict):
        error = error.get("message")
    return str(error or body.get("message") or body.get("detail") or "")


def _positive(value: Any) -> int | None:
    return value if isinstance(value, int) and value > 0 else None
