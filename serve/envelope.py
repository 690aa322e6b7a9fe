"""Every error as OpenAI's JSON envelope: {"error": {"message", "type", "param", "code"}}.

Not here: who notices an error. `describe` turns any exception into a status and an envelope, for
responses that have not begun (`app.py`) and for streams that have (`sse.py`).
Shape: `ErrorResponse` of OpenAI's published schema.
"""

import reprlib
from collections.abc import Sequence
from typing import Any

from llmlab.errors import LabError, MissingExtraError, RequestError, ServerError

try:
    from fastapi import Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException
except ImportError as error:
    raise MissingExtraError("fastapi", "serve") from error

_MAX_MESSAGE = 1000
"""Characters of a message; what a client sent is quoted in it."""

_CODES = {401: "invalid_api_key", 404: "not_found", 405: "method_not_allowed", 413: "too_large"}
_RETRY_AFTER_S = "1"


class ApiError(RequestError):
    """A refused request with one of OpenAI's error codes.

    Args:
        message: what was wrong, the value, the fix.
        param: the request field at fault, as the API names it.
        status: HTTP status, 4xx.
        code: the word that programs test for, such as `context_length_exceeded`.
    """

    def __init__(
        self, message: str, *, param: str | None = None, status: int = 400, code: str | None = None
    ) -> None:
        super().__init__(message, param=param, status=status)
        self.code = code


def describe(error: Exception) -> tuple[int, dict[str, Any]]:
    """Return the HTTP status and the JSON body for an error.

    An error that is not one of ours says nothing about itself to the client; the log has it.
    """
    if isinstance(error, RequestValidationError):
        return 400, _validation(error.errors())
    if isinstance(error, RequestError):
        code = error.code if isinstance(error, ApiError) else None
        if error.status == 429:
            return 429, envelope(str(error), "rate_limit_error", error.param, code or "queue_full")
        return error.status, envelope(str(error), param=error.param, code=code)
    if isinstance(error, ServerError):
        return 503, envelope(str(error), "server_error", code="engine_unavailable")
    if isinstance(error, LabError):
        return 400, envelope(str(error))
    if isinstance(error, HTTPException):
        code = _CODES.get(error.status_code)
        return error.status_code, envelope(str(error.detail), code=code)
    return 500, envelope("internal error; the server's log has it", "server_error")


def envelope(
    message: str,
    kind: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
) -> dict[str, Any]:
    """Return the JSON body of an error; text that is no UTF-8 and overlong text are cut."""
    return {
        "error": {
            "message": _clean(message),
            "type": kind,
            "param": None if param is None else _clean(param),
            "code": code,
        }
    }


def error_response(error: Exception) -> JSONResponse:
    """Return the HTTP response for an error."""
    status, body = describe(error)
    headers = dict(getattr(error, "headers", None) or {})
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if status in (429, 503):
        headers["Retry-After"] = _RETRY_AFTER_S
    return JSONResponse(body, status_code=status, headers=headers)


async def handle(request: Request, error: Exception) -> JSONResponse:
    """Answer an exception that reached FastAPI."""
    return error_response(error)


def _validation(errors: Sequence[Any]) -> dict[str, Any]:
    """Describe the first field that failed; a union's alternatives are joined by 'or'."""
    first = errors[0]
    where = first["loc"][1:]
    if first["type"] == "json_invalid":
        return envelope(f"the body is not JSON: {first['ctx']['error']}", code="invalid_json")
    if not where:
        return envelope(
            "the body must be a JSON object, sent with Content-Type: application/json",
            code="invalid_json",
        )
    path = _path(where)
    reasons = [item["msg"] for item in errors if _path(item["loc"][1:]) == path]
    got = "" if first["type"] == "missing" else f", got {reprlib.repr(first['input'])}"
    message = f"{path}: {' or '.join(dict.fromkeys(reasons))}{got}"
    return envelope(message, param=path, code="missing" if first["type"] == "missing" else None)


def _path(loc: Sequence[Any]) -> str:
    """Write a place as OpenAI does: messages[0].content; names of union members are left out."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part in ("str", "int") or "[" in part:
            break
        else:
            text += f".{part}" if text else part
    return text


def _clean(text: str) -> str:
    text = text if len(text) <= _MAX_MESSAGE else text[: _MAX_MESSAGE - 3] + "..."
    return text.encode("utf-8", errors="replace").decode("utf-8")
