"""What stands before every route: the API key and the size of the body (plain ASGI).

Not here: rate limits, TLS; a proxy in front does those.
"""

import hashlib
import hmac
from collections.abc import Collection, Sequence
from pathlib import Path

from llmlab.errors import ConfigError, MissingExtraError
from llmlab.serve.envelope import ApiError, error_response

try:
    from starlette.exceptions import HTTPException
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ImportError as error:
    raise MissingExtraError("starlette", "serve") from error

MAX_BODY_BYTES = 32 * 2**20

PUBLIC_PATHS = frozenset({"/health"})
"""Answered without a key; every other path, known or not, needs one."""


def read_api_keys(path: Path) -> tuple[str, ...]:
    """Read one key a line; empty lines are skipped.

    Raises:
        ConfigError: the file cannot be read or has no key.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read api_key_file={path}: {error}; check the path") from error
    keys = tuple(line.strip() for line in lines if line.strip())
    if not keys:
        raise ConfigError(f"api_key_file={path} has no key; write one a line")
    return keys


class RequireKey:
    """Refuses requests without one of the keys, whose comparison takes the same time for any key.

    It goes by `scope["path"]`, which the Host header cannot change. Whoever has a key is known to
    the routes by its digest, `request.state.client`.

    Args:
        app: what to protect.
        keys: accepted in `Authorization: Bearer KEY`; none accepts every request.
        public: paths that need no key.
    """

    def __init__(
        self, app: ASGIApp, keys: Sequence[str], public: Collection[str] = PUBLIC_PATHS
    ) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in keys]
        self._public = public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401."""
        is_open = not self._digests or scope["path"] in self._public
        client = "" if is_open else self._client(scope)
        if client is not None:
            scope.setdefault("state", {})["client"] = client
            await self._app(scope, receive, send)
            return
        refusal = ApiError(
            "the API key is missing or wrong; send the header Authorization: Bearer KEY",
            status=401,
            code="invalid_api_key",
        )
        await error_response(refusal)(scope, receive, send)

    def _client(self, scope: Scope) -> str | None:
        """Return the digest of the request's key; None when it is not one of the keys."""
        values = [value for name, value in scope["headers"] if name == b"authorization"]
        kind, _, key = (values[0] if len(values) == 1 else b"").partition(b" ")
        digest = _digest(key.strip())
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return digest.hex() if kind.lower() == b"bearer" and any(matches) else None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


class LimitBody:
    """Refuses bodies above a size, declared or counted while they come.

    Args:
        app: what to protect.
        max_bytes: the largest body passed on.
    """

    def __init__(self, app: ASGIApp, max_bytes: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; reading too long a body raises HTTP status 413."""
        refusal = HTTPException(
            413, f"the body is larger than {self._max_bytes} bytes; send less at a time"
        )
        for name, value in scope["headers"]:
            if name == b"content-length" and int(value) > self._max_bytes:
                await error_response(refusal)(scope, receive, send)
                return
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise refusal
            return message

        await self._app(scope, counted, send)
