"""How a request asks for structure: OpenAI's `response_format`, vLLM's `structured_outputs`.

Not here: what a structure may be and how a text keeps to it (`grammar/`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from llmlab.errors import MissingExtraError, RequestError
from llmlab.serve.body import Body, Text
from llmlab.serve.envelope import ApiError
from llmlab.serve.grammar.spec import GrammarSpec

try:
    from pydantic import Field, model_validator
except ImportError as error:
    raise MissingExtraError("pydantic", "serve") from error

SchemaText = str | dict[str, Any]
"""A JSON schema, or its text."""
Texts = Annotated[list[Text], Field(fail_fast=True, min_length=1)]

_SPEC_FIELDS = {"json": "json_schema"}
"""Fields of `GrammarSpec` that vLLM names otherwise."""


class JsonSchema(Body):
    """A schema as OpenAI wraps it."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    """A label; it changes nothing."""
    description: Text | None = None
    """Changes nothing: the model reads what the messages say."""
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool = False
    """Changes nothing: every schema is kept to."""


class ResponseFormat(Body):
    """What the text of the answer is: OpenAI's field."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_for_its_type(self) -> "ResponseFormat":
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise ApiError(
                f"response_format has the type {self.type!r} and "
                f"{'a' if self.json_schema else 'no'} json_schema; send a schema with the type "
                "'json_schema', and with no other",
                param="response_format",
            )
        return self

    def spec_fields(self) -> dict[str, Any]:
        """Return the fields of a `GrammarSpec`; none for plain text."""
        if self.type == "text":
            return {}
        if self.json_schema is None:
            return {"json_object": True}
        return {"json_schema": self.json_schema.schema_}


class StructuredOutputs(Body):
    """What the text is to look like: vLLM's field; one of these."""

    json_: Annotated[SchemaText | None, Field(alias="json")] = None
    regex: str | None = None
    choice: Texts | None = None
    grammar: str | None = None
    """EBNF, as `GrammarSpec` takes it."""
    json_object: bool = False

    def asked(self) -> dict[str, Any]:
        """Return the fields that are set, as the API names them."""
        return self.model_dump(by_alias=True, exclude_defaults=True)


@dataclass(frozen=True)
class Structure:
    """The structure that a request asks for."""

    spec: GrammarSpec
    param: str
    """The field of the request that asks for it."""

    def named(self, error: RequestError) -> RequestError:
        """Return an error of the engine; one about the structure names the request's field."""
        if error.param != self.spec.kind:
            return error
        return ApiError(str(error), param=self.param, status=error.status)


def read_structure(
    response_format: ResponseFormat | None,
    structured_outputs: StructuredOutputs | None,
    guided: Mapping[str, Any],
) -> Structure | None:
    """Return the one structure that a request asks for, None when it asks for none.

    Args:
        response_format: OpenAI's way.
        structured_outputs: vLLM's way.
        guided: vLLM's older way: `guided_json`, `guided_regex`, ..., None where one is left out.

    Raises:
        ApiError: several are asked for, or one is malformed or beyond the limits.
    """
    asked = {name: _spec_field(name, value) for name, value in guided.items() if value is not None}
    if response_format is not None and (fields := response_format.spec_fields()):
        asked["response_format"] = fields
    if structured_outputs is not None:
        own = structured_outputs.asked()
        if not own:
            raise ApiError(
                "structured_outputs asks for nothing; set json, regex, choice, grammar or "
                "json_object, or leave it out",
                param="structured_outputs",
            )
        asked |= {f"structured_outputs.{name}": _spec_field(name, own[name]) for name in own}
    if not asked:
        return None
    (param, fields), *others = asked.items()
    if others:
        raise ApiError(
            f"{' and '.join(asked)} each ask for a structure; send one of them", param=others[0][0]
        )
    try:
        return Structure(GrammarSpec(**fields), param)
    except RequestError as error:
        raise ApiError(str(error), param=param) from error


def _spec_field(name: str, value: Any) -> dict[str, Any]:
    own = name.removeprefix("guided_")
    return {_SPEC_FIELDS.get(own, own): value}
