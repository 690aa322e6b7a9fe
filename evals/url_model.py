"""A model behind an OpenAI-style server.

Not here: which tokens are scored (windows.py), retries (client.py). Scoring needs what vLLM and
`llmlab serve` offer: POST /tokenize, and POST /v1/completions that takes token ids and returns
their log probabilities (`echo`, `logprobs`). Generation needs /v1/chat/completions, or
/v1/completions for a model without a chat template. A bounded number of requests run at once, so
that the server can batch them; one that fails in the end costs its own example only.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, Self, TypeVar

from llmlab.errors import EvalError, ServerError
from llmlab.evals.client import HttpClient, RefusedError
from llmlab.evals.models import Failure, GenerateRequest, Loglikelihood, TextLogprob
from llmlab.evals.windows import Coding, Row
from llmlab.track import OnProgress, silent

In = TypeVar("In")
Out = TypeVar("Out")


class UrlModel:
    """A model behind a URL; use it as a context manager, or `close` it.

    Args:
        base_url: such as http://127.0.0.1:8000/v1, with or without the /v1.
        model: served name; the first one the server lists when None.
        api_key: bearer token, for a server that asks for one.
        max_len: most tokens fed at once; one less than the server's context length when None.
        num_concurrent: requests under way at once.
        num_tries: tries a request gets in all.
        retry_wait_s: seconds before the second try; doubled for each further one.
        timeout_s: seconds an answer may take.

    Raises:
        EvalError: `base_url` is no URL.
        ServerError: nothing usable answers at the URL.
    """

    def __init__(
        self,
        base_url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        max_len: int | None = None,
        num_concurrent: int = 8,
        num_tries: int = 5,
        retry_wait_s: float = 0.5,
        timeout_s: float = 120.0,
    ) -> None:
        root = base_url.rstrip("/").removesuffix("/v1")
        if not root.startswith(("http://", "https://")):
            raise EvalError(f"base_url={base_url!r} is no URL; write http://127.0.0.1:8000/v1")
        self._http = HttpClient(
            root, api_key=api_key, timeout_s=timeout_s, num_tries=num_tries, wait_s=retry_wait_s
        )
        try:
            self.name = model or self._first_model()
            self._info = self._optional(lambda: self._http.get("/tokenizer_info")) or {}
            self._coding = self._read_coding(max_len)
        except BaseException:
            self.close()
            raise
        self._num_concurrent = num_concurrent
        self._has_chat = not self._info or self._info.get("chat_template") is not None
        self.fingerprint = self._fingerprint()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def loglikelihood(
        self, pairs: Sequence[tuple[str, str]], *, on_progress: OnProgress = silent
    ) -> list[Loglikelihood | Failure]:
        """Score (context, continuation) pairs, in order.

        Raises:
            EvalError: the server cannot tokenize.
        """
        coding = self._needed_coding()

        def score(pair: tuple[str, str]) -> Loglikelihood | Failure:
            row = coding.pair_row(*pair)
            if isinstance(row, str):
                return Failure(row)
            logprobs, is_greedy = self._score(row)
            return Loglikelihood(sum(logprobs), is_greedy, len(row.target_ids))

        return self._side_by_side(score, pairs, on_progress)

    def loglikelihood_rolling(
        self, texts: Sequence[str], *, on_progress: OnProgress = silent
    ) -> list[TextLogprob | Failure]:
        """Score whole texts, in order; an empty text has log probability 0.

        Raises:
            EvalError: the server cannot tokenize.
        """
        coding = self._needed_coding()

        def score(text: str) -> TextLogprob | Failure:
            logprobs: list[float] = []
            for row in coding.text_rows(text):
                logprobs += self._score(row)[0]
            return TextLogprob(float(sum(logprobs)), len(logprobs), len(text.encode()))

        return self._side_by_side(score, texts, on_progress)

    def generate(
        self, requests: Sequence[GenerateRequest], *, on_progress: OnProgress = silent
    ) -> list[str | Failure]:
        """Answer requests, in order, at temperature 0."""
        return self._side_by_side(self._answer, requests, on_progress)

    def _answer(self, request: GenerateRequest) -> str:
        body: dict[str, Any] = {
            "model": self.name,
            "temperature": 0,
            "max_tokens": request.max_tokens,
        }
        if self._has_chat:
            body["messages"] = [{"role": "user", "content": request.message}]
            answer = self._http.post("/v1/chat/completions", body)
            return _text(answer, lambda choice: choice["message"]["content"])
        body["prompt"] = request.prompt
        if request.stop:
            body["stop"] = list(request.stop)
        answer = self._http.post("/v1/completions", body)
        return _text(answer, lambda choice: choice["text"])

    def _score(self, row: Row) -> tuple[list[float], bool]:
        """Return the log probability of each target, and whether all were the most likely."""
        prompt_ids = [*row.input_ids, row.target_ids[-1]]
        body: dict[str, Any] = {
            "model": self.name,
            "prompt": prompt_ids,
            "max_tokens": 0,
            "temperature": 0,
            "echo": True,
            "logprobs": 1,
        }
        try:
            answer = self._http.post("/v1/completions", body)
        except RefusedError as error:
            if error.status not in (400, 422):
                raise
            # Some servers refuse to generate nothing; then one token is generated and not read.
            answer = self._http.post("/v1/completions", body | {"max_tokens": 1})
        start, end = len(prompt_ids) - len(row.target_ids), len(prompt_ids)
        try:
            logprobs = answer["choices"][0]["logprobs"]
            chosen = [float(number) for number in logprobs["token_logprobs"][start:end]]
            best = [max(top.values()) for top in logprobs["top_logprobs"][start:end]]
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise ServerError(
                f"{self._http.root}/v1/completions returned no log probabilities of the prompt; "
                "it must honour echo and logprobs"
            ) from error
        if len(chosen) != len(row.target_ids) or len(best) != len(chosen):
            raise ServerError(
                f"{self._http.root}/v1/completions returned {len(chosen)} log probabilities for "
                f"{len(row.target_ids)} tokens; it must honour echo"
            )
        return chosen, all(a >= b for a, b in zip(chosen, best, strict=True))

    def _side_by_side(
        self, work: Callable[[In], Out | Failure], items: Sequence[In], on_progress: OnProgress
    ) -> list[Out | Failure]:
        results: list[Out | Failure] = [Failure("not asked")] * len(items)
        with ThreadPoolExecutor(self._num_concurrent) as pool:
            places = {pool.submit(work, item): at for at, item in enumerate(items)}
            try:
                for done, future in enumerate(as_completed(places), start=1):
                    try:
                        results[places[future]] = future.result()
                    except ServerError as error:
                        results[places[future]] = Failure(str(error))
                    on_progress({"requests": f"{done}/{len(items)}"})
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return results

    def _first_model(self) -> str:
        answer = self._http.get("/v1/models")
        try:
            return str(answer["data"][0]["id"])
        except (KeyError, IndexError, TypeError) as error:
            raise ServerError(
                f"{self._http.root}/v1/models lists no model; check --base-url"
            ) from error

    def _read_coding(self, max_len: int | None) -> Coding | None:
        """Learn from the server how texts become tokens; None when it does not tokenize."""
        empty = self._optional(lambda: self._tokenize("", add_special_tokens=True))
        if empty is None:
            return None
        bos_ids = _token_ids(empty)
        prefix = self._info.get("bos_token") or self._info.get("eos_token")
        prefix_ids = bos_ids[:1] or (self._encode(str(prefix)) if prefix else [])
        if len(prefix_ids) != 1:
            return None
        limit = empty.get("max_model_len") or 2048
        return Coding(
            encode=self._encode,
            bos_ids=bos_ids,
            prefix_id=prefix_ids[0],
            max_len=max_len or int(limit) - 1,
        )

    def _needed_coding(self) -> Coding:
        if self._coding is None:
            raise EvalError(
                f"{self._http.root} has no /tokenize and /tokenizer_info, which scoring by log "
                "probability needs; run a generation task such as short_answers, or serve the "
                "model with `llmlab serve`"
            )
        return self._coding

    def _encode(self, text: str) -> list[int]:
        return _token_ids(self._tokenize(text, add_special_tokens=False))

    def _tokenize(self, text: str, *, add_special_tokens: bool) -> dict[str, Any]:
        body = {"model": self.name, "prompt": text, "add_special_tokens": add_special_tokens}
        return self._http.post("/tokenize", body)

    def _optional(self, ask: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        try:
            return ask()
        except RefusedError as error:
            if error.status in (404, 405, 501):
                return None
            raise

    def _fingerprint(self) -> str:
        """Hash what the server tells of itself.

        A URL does not show its weights: two runs with one fingerprint may be of different ones.
        """
        max_len = self._coding.max_len if self._coding else None
        told = json.dumps([self._http.root, self.name, self._info, max_len], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()


def _token_ids(answer: dict[str, Any]) -> list[int]:
    ids = answer.get("tokens")
    if not isinstance(ids, list) or not all(isinstance(token, int) for token in ids):
        raise ServerError("/tokenize returned no list `tokens`; serve with `llmlab serve` or vLLM")
    return ids


def _text(answer: dict[str, Any], read: Callable[[dict[str, Any]], Any]) -> str:
    try:
        text = read(answer["choices"][0])
    except (KeyError, IndexError, TypeError) as error:
        raise ServerError(f"the answer has no text: {str(answer)[:200]}") from error
    return text or ""
