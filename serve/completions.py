"""POST /v1/completions: continue, or only score, one or more prompts.

Not here: HTTP, the frame around the choices (`answer.py`).
Shapes: `CreateCompletionResponse` of OpenAI's published schema.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmlab.serve.answer import Form, Piece
from llmlab.serve.choices import token_budget
from llmlab.serve.deltas import Delta
from llmlab.serve.envelope import ApiError
from llmlab.serve.logprobs import CompletionLogprobs, joined
from llmlab.serve.params import SamplingParams
from llmlab.serve.schema import CompletionRequest
from llmlab.tokenizers import Tokenizer

FORM = Form(id_prefix="cmpl", whole="text_completion", chunk="text_completion")

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for this route."""


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model reads it and as `echo` shows it."""

    ids: list[int]
    text: str
    num_hidden: int
    """Ids at the beginning whose text is not shown (BOS, which the tokenizer puts there)."""


def read_prompts(tokenizer: Tokenizer, prompts: Sequence[str | list[int]]) -> list[Prompt]:
    """Encode texts, with what the tokenizer puts in front of a prompt; decode token ids.

    Raises:
        ApiError: a token id is outside the vocabulary, or a prompt has no token.
    """
    bos = list(tokenizer.bos_ids)
    read = []
    for prompt in prompts:
        if isinstance(prompt, str):
            ids = bos + tokenizer.encode(prompt, allow_special=True)
            read.append(Prompt(ids, prompt, len(bos)))
        else:
            read.append(Prompt(prompt, decode(tokenizer, prompt, param="prompt"), 0))
        if not read[-1].ids:
            raise ApiError(
                f"prompt number {len(read)} is empty and the tokenizer puts nothing in front of "
                "it; send at least one token",
                param="prompt",
            )
    return read


def decode(tokenizer: Tokenizer, ids: Sequence[int], *, param: str) -> str:
    """Return the text of token ids that a request sent as `param`.

    Raises:
        ApiError: an id is outside the tokenizer's vocabulary.
    """
    for number, token_id in enumerate(ids):
        if not 0 <= token_id < tokenizer.vocab_size:
            raise ApiError(
                f"{param} has the token id {token_id} at place {number}; use ids from 0 to "
                f"{tokenizer.vocab_size - 1}",
                param=param,
            )
    return tokenizer.decode(ids)


def completion_choices(
    body: CompletionRequest, prompts: Sequence[Prompt], tokenizer: Tokenizer, max_model_len: int
) -> list["CompletionChoice"]:
    """Return the choices of a request, n for each prompt.

    Raises:
        RequestError: a prompt does not fit, or a sampling value is out of its range.
    """
    choices = []
    for prompt in prompts:
        max_tokens = token_budget(
            len(prompt.ids),
            body.max_tokens,
            default=DEFAULT_MAX_TOKENS,
            max_model_len=max_model_len,
        )
        for number in range(body.n):
            params = body.sampling_params(
                number,
                max_tokens=max_tokens,
                logprobs=body.logprobs,
                prompt_logprobs=body.logprobs if body.echo else None,
            )
            choices.append(CompletionChoice(len(choices), prompt, params, body.echo, tokenizer))
    return choices


class CompletionChoice:
    """One choice of a completion, written piece by piece."""

    def __init__(
        self, index: int, prompt: Prompt, params: SamplingParams, echo: bool, tokenizer: Tokenizer
    ) -> None:
        self.prompt_ids = prompt.ids
        self.params = params
        self._index = index
        self._unechoed = prompt if echo else None
        self._logprobs = None if params.logprobs is None else CompletionLogprobs(tokenizer)

    def opening(self) -> list[Piece]:
        """Return nothing: a completion begins with its first text."""
        return []

    def pieces(self, delta: Delta) -> list[Piece]:
        """Return what a delta adds, the echoed prompt in front of the first one."""
        text = delta.text
        lists = []
        if self._unechoed is not None:
            prompt, self._unechoed = self._unechoed, None
            text = prompt.text + text
            if self._logprobs and delta.prompt_logprobs is not None:
                entries = delta.prompt_logprobs
                lists.append(
                    self._logprobs.prompt(prompt.ids, entries, num_hidden=prompt.num_hidden)
                )
        if self._logprobs:
            lists.append(self._logprobs.generated(delta.logprobs))
        logprobs = joined(lists) if lists else None
        if not text and not (logprobs and logprobs["tokens"]) and delta.finish_reason is None:
            return []
        return [self._piece(text, logprobs, delta.finish_reason)]

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """Join the pieces."""
        lists = [piece["logprobs"] for piece in pieces if piece["logprobs"] is not None]
        return self._piece(
            "".join(piece["text"] for piece in pieces),
            joined(lists) if self._logprobs else None,
            pieces[-1]["finish_reason"],
        )

    def _piece(self, text: str, logprobs: dict[str, Any] | None, reason: str | None) -> Piece:
        return {
            "text": text,
            "index": self._index,
            "logprobs": logprobs,
            "finish_reason": reason,
        }
