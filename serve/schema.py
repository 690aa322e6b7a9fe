"""What a request body may say: OpenAI's fields, vLLM's sampling additions, and nothing else.

A field this server does not know or cannot honour is refused by name, never dropped in silence.
`null` means the default. Two lists are the exceptions: `IGNORED` fields change nothing about what
is generated, and `INERT` ones are accepted with the values that ask for nothing.

Not here: ranges of sampling values (`SamplingParams` checks them), shapes of answers.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from llmlab.errors import MissingExtraError, did_you_mean
from llmlab.serve.envelope import ApiError
from llmlab.serve.params import MAX_TOP_LOGPROBS, SamplingParams

try:
    from pydantic import (
        AfterValidator,
        BaseModel,
        BeforeValidator,
        ConfigDict,
        Field,
        model_validator,
    )
except ImportError as error:
    raise MissingExtraError("pydantic", "serve") from error

MAX_N = 128
MAX_PROMPTS = 1024
MAX_STOP = 4
MAX_LOGIT_BIAS = 1024
MAX_SALT = 256

IGNORED = frozenset(
    {"user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
)
"""Accepted with any value: labels for the provider's own books."""

INERT: Mapping[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "best_of": (1,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_calls": ([],),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
}
"""Accepted with these values, which ask for nothing; refused with any other."""

_UNSUPPORTED = frozenset(
    {
        *INERT,
        "audio",
        "moderation",
        "name",
        "prediction",
        "reasoning_effort",
        "refusal",
        "tool_call_id",
        "verbosity",
        "web_search_options",
    }
)
"""OpenAI's fields that this server has no use for; `null` is accepted."""


class Body(BaseModel):
    """A JSON object whose every key is known; numbers are numbers, not strings."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        fields = set(cls.model_fields)
        kept = {}
        for key, value in body.items():
            if key in fields:
                if value is not None:
                    kept[key] = value
            elif key in _UNSUPPORTED:
                _check_inert(key, value)
            elif key not in IGNORED:
                raise ApiError(
                    f"unknown parameter {key[:60]!r}{did_you_mean(key[:60], fields)}",
                    param=key,
                    code="unknown_parameter",
                )
        return kept


def _check_inert(key: str, value: Any) -> None:
    if value is not None and value not in INERT.get(key, ()):
        raise ApiError(
            f"this server does not support {key!r}; leave it out",
            param=key,
            code="unsupported_parameter",
        )


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _prompts(value: Any) -> Any:
    """Bring the four forms of a prompt to one: a list of texts or token id lists."""
    is_token_ids = isinstance(value, list) and value and not isinstance(value[0], str | list)
    return [value] if isinstance(value, str) or is_token_ids else value


def _parts(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


def _bias(value: Any) -> Any:
    """Turn the keys of a logit bias, which JSON has as strings, into token ids."""
    if not isinstance(value, dict):
        return value
    if len(value) > MAX_LOGIT_BIAS:
        raise ApiError(
            f"logit_bias has {len(value)} tokens; send at most {MAX_LOGIT_BIAS}",
            param="logit_bias",
        )
    for key in value:
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise ApiError(
                f"logit_bias has the key {key[:60]!r}; use token ids such as '42'",
                param="logit_bias",
            )
    return {int(key): bias for key, bias in value.items()}


def _utf8(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError("text has half a surrogate pair, which is no Unicode text") from error
    return text


Text = Annotated[str, AfterValidator(_utf8)]
TokenIds = Annotated[list[int], Field(fail_fast=True)]


class StreamOptions(Body):
    """What a stream carries beside the text."""

    include_usage: bool = False
    """End the stream with a chunk of token counts."""
    include_obfuscation: Literal[False] = False
    """Padding against side channels; this server has none."""


class Sampling(Body):
    """The fields that both generation routes share."""

    model: str | None = None
    """The served name; may be left out."""
    n: Annotated[int, Field(ge=1, le=MAX_N)] = 1
    """Choices per prompt. With a seed, choice i of a prompt takes seed + i."""
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: Annotated[
        list[Text], Field(fail_fast=True, max_length=MAX_STOP), BeforeValidator(_listed)
    ] = []
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: Annotated[int, Field(ge=-1)] = 0
    """0 and -1 keep every token."""
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Annotated[dict[int, float], BeforeValidator(_bias)] = {}
    stop_token_ids: Annotated[list[int], Field(fail_fast=True, max_length=MAX_STOP)] = []
    min_tokens: int = 0
    ignore_eos: bool = False
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0
    """Lower is served earlier."""
    cache_salt: Annotated[Text, Field(min_length=1, max_length=MAX_SALT)] | None = None
    """Who does not send the same finds nothing of this prompt in the prefix cache."""

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with token counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    @model_validator(mode="after")
    def _options_need_stream(self) -> "Sampling":
        if self.stream_options is not None and not self.stream:
            raise ApiError(
                "stream_options needs stream=true; add it or leave stream_options out",
                param="stream_options",
            )
        return self

    def sampling_params(
        self,
        choice: int,
        *,
        max_tokens: int,
        logprobs: int | None,
        prompt_logprobs: int | None = None,
    ) -> SamplingParams:
        """Return what the engine is asked for one choice of a prompt.

        Raises:
            RequestError: a value is out of its range.
        """
        seed = self.seed
        if seed is not None:
            seed = (seed + choice + 2**63) % 2**64 - 2**63  # stays a 64-bit number
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(self.top_k, 0),
            min_p=self.min_p,
            seed=seed,
            stop=tuple(self.stop),
            stop_token_ids=tuple(self.stop_token_ids),
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias=self.logit_bias,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            ignore_eos=self.ignore_eos,
            min_tokens=self.min_tokens,
            priority=self.priority,
            cache_salt=self.cache_salt,
        )


class CompletionRequest(Sampling):
    """The body of POST /v1/completions."""

    prompt: Annotated[
        list[Text | TokenIds],
        Field(fail_fast=True, min_length=1, max_length=MAX_PROMPTS),
        BeforeValidator(_prompts),
    ]
    """A text, token ids, or a list of either. Special tokens written in a text are read as such."""
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    """16 when left out, as at OpenAI; 0 only reads the prompt."""
    echo: bool = False
    """Begin the text (and the logprobs) with the prompt."""
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None


class TextPart(Body):
    """A piece of a message; text is all this server reads."""

    type: Literal["text"]
    text: Text


class Message(Body):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[TextPart], Field(fail_fast=True), BeforeValidator(_parts)]

    def for_template(self) -> dict[str, str]:
        """Return the message as chat templates take it; a developer is a system by its new name."""
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": "\n".join(part.text for part in self.content)}


class ChatRequest(Sampling):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """The old name of `max_completion_tokens`; both left out: until the context is full."""
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @property
    def token_limit(self) -> int | None:
        """The most tokens to generate, under whichever name it came."""
        limits = [n for n in (self.max_tokens, self.max_completion_tokens) if n is not None]
        return min(limits, default=None)

    @model_validator(mode="after")
    def _alternatives_need_logprobs(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(
                f"top_logprobs={self.top_logprobs} needs logprobs=true; add it",
                param="top_logprobs",
            )
        return self


class TokenizeRequest(Body):
    """The body of POST /tokenize."""

    model: str | None = None
    prompt: Text
    add_special_tokens: bool = True
    """Begin with what a prompt begins with (a BOS token, where the tokenizer has one)."""


class DetokenizeRequest(Body):
    """The body of POST /detokenize."""

    model: str | None = None
    tokens: TokenIds
