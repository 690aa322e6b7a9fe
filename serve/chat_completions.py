"""POST /v1/chat/completions: the next turn of a conversation.

Not here: HTTP, the chat template (the tokenizer has it), the frame around the choices
(`answer.py`).
Shapes: `CreateChatCompletionResponse` and `CreateChatCompletionStreamResponse` of OpenAI's
published schema.
"""

from collections.abc import Sequence
from typing import Any

from llmlab.errors import TokenizerError
from llmlab.serve.answer import Form, Piece
from llmlab.serve.choices import token_budget
from llmlab.serve.deltas import Delta
from llmlab.serve.envelope import ApiError
from llmlab.serve.logprobs import chat_entries
from llmlab.serve.params import SamplingParams
from llmlab.serve.schema import ChatRequest, Message
from llmlab.tokenizers import Tokenizer

FORM = Form(id_prefix="chatcmpl", whole="chat.completion", chunk="chat.completion.chunk")


def read_chat(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Return the token ids of a conversation that the assistant is to go on with.

    Raises:
        ApiError: the model has no chat template, or its template refuses the messages.
    """
    try:
        return tokenizer.encode_chat([message.for_template() for message in messages])
    except TokenizerError as error:
        raise ApiError(str(error), param="messages") from error


def chat_choices(
    body: ChatRequest, prompt_ids: Sequence[int], max_model_len: int
) -> list["ChatChoice"]:
    """Return the n choices of a request.

    Raises:
        RequestError: the conversation does not fit, or a sampling value is out of its range.
    """
    max_tokens = token_budget(
        len(prompt_ids), body.token_limit, default=None, max_model_len=max_model_len
    )
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return [
        ChatChoice(
            number,
            prompt_ids,
            body.sampling_params(number, max_tokens=max_tokens, logprobs=logprobs),
        )
        for number in range(body.n)
    ]


class ChatChoice:
    """One choice of a chat answer, written piece by piece."""

    def __init__(self, index: int, prompt_ids: Sequence[int], params: SamplingParams) -> None:
        self.prompt_ids = prompt_ids
        self.params = params
        self._index = index

    def opening(self) -> list[Piece]:
        """Return the piece that says who speaks."""
        return [self._piece({"role": "assistant", "content": ""})]

    def pieces(self, delta: Delta) -> list[Piece]:
        """Return the text a delta adds and, as OpenAI sends it, the end as a piece of its own."""
        pieces = []
        if delta.text or delta.logprobs:
            logprobs = None
            if self.params.logprobs is not None:
                logprobs = {"content": chat_entries(delta.logprobs), "refusal": None}
            pieces.append(self._piece({"content": delta.text}, logprobs))
        if delta.finish_reason is not None:
            pieces.append(self._piece({}, None, delta.finish_reason))
        return pieces

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """Join the pieces."""
        text = "".join(piece["delta"].get("content", "") for piece in pieces)
        logprobs = None
        if self.params.logprobs is not None:
            lists = [piece["logprobs"]["content"] for piece in pieces if piece["logprobs"]]
            logprobs = {"content": [entry for part in lists for entry in part], "refusal": None}
        return {
            "index": self._index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": logprobs,
            "finish_reason": pieces[-1]["finish_reason"],
        }

    def _piece(
        self,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> Piece:
        return {
            "index": self._index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
