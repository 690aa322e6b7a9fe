"""JSON objects whose every key is known: what no field stands for is refused, never dropped.

`null` means the default. Two lists are the exceptions: `IGNORED` fields change nothing about what
is generated, and `INERT` ones are accepted with the values that ask for nothing.

Not here: the fields (`schema.py`, `structure.py`).
"""

from collections.abc import Mapping
from typing import Annotated, Any

from llmlab.errors import MissingExtraError, did_you_mean
from llmlab.serve.envelope import ApiError

try:
    from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
except ImportError as error:
    raise MissingExtraError("pydantic", "serve") from error

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
        fields = {field.alias or name for name, field in cls.model_fields.items()}
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


def _utf8(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError("text has half a surrogate pair, which is no Unicode text") from error
    return text


Text = Annotated[str, AfterValidator(_utf8)]
TokenIds = Annotated[list[int], Field(fail_fast=True)]
