"""One JSON request to a server, tried again when trying again can help.

Not here: what is asked (url_model.py). Status 429 and 5xx, broken connections and answers that are
not JSON are tried again after a growing wait; any other status is the request's own fault.
"""

import time
from typing import Any

from llmlab.errors import MissingExtraError, ServerError

try:
    import httpx
except ImportError as error:
    raise MissingExtraError("httpx", "evals") from error

_LONGEST_WAIT_S = 30.0


class HttpClient:
    """A server's root URL and how patiently it is asked; threads may share it.

    Args:
        root: URL without a path, such as http://127.0.0.1:8000.
        api_key: sent as a bearer token.
        timeout_s: seconds an answer may take.
        num_tries: tries a request gets in all.
        wait_s: seconds before the second try; doubled for each further one.
    """

    def __init__(
        self,
        root: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 120.0,
        num_tries: int = 5,
        wait_s: float = 0.5,
    ) -> None:
        self.root = root
        self._num_tries = num_tries
        self._wait_s = wait_s
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.Client(base_url=root, headers=headers, timeout=timeout_s)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def get(self, path: str) -> dict[str, Any]:
        """GET a JSON object; raises as `post` does."""
        return self._ask("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """POST a JSON object and return the JSON object that answers.

        Raises:
            RefusedError: the server refuses this request (4xx).
            ServerError: no usable answer after all tries.
        """
        return self._ask("POST", path, body)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        problem = ""
        for number in range(self._num_tries):
            if number:
                time.sleep(min(self._wait_s * 2 ** (number - 1), _LONGEST_WAIT_S))
            try:
                response = self._client.request(method, path, json=body)
                problem = f"status {response.status_code}: {_message(response)}"
                if response.is_success:
                    return _object(response)
            except httpx.RequestError as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            except ValueError as error:
                problem = f"an answer that is not a JSON object: {error}"
                continue
            if response.status_code != 429 and response.status_code < 500:
                raise RefusedError(f"{self.root}{path} refused the request: {problem}", response)
        raise ServerError(
            f"{self.root}{path} gave no usable answer in {self._num_tries} tries; last: {problem}"
        )


class RefusedError(ServerError):
    """The server refuses a request, and would again.

    Args:
        message: what it said.
        response: its answer.
    """

    def __init__(self, message: str, response: httpx.Response) -> None:
        super().__init__(message)
        self.status = response.status_code


def _object(response: httpx.Response) -> dict[str, Any]:
    content = response.json()
    if not isinstance(content, dict):
        raise ValueError(f"got a {type(content).__name__}")
    return content


def _message(response: httpx.Response) -> str:
    """Return the `error.message` of an OpenAI-style answer, or the start of its text."""
    try:
        return str(_object(response)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
