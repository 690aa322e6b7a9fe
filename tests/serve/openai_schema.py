"""OpenAI's published API description as a judge of our answers."""

import copy
import gzip
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest


def assert_is(name: str, body: Any) -> None:
    """Fail unless `body` has the shape `name` of OpenAI's description, with no field besides.

    Skips the test when the description (`openai-openapi/openapi.json.gz`) is nowhere.
    """
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    schema = {"$ref": f"#/components/schemas/{name}", "components": _components()}
    errors = sorted(jsonschema.Draft202012Validator(schema).iter_errors(body), key=str)
    assert not errors, f"{name}: {errors[0].json_path}: {errors[0].message}\n{body}"


@cache
def _components() -> dict[str, Any]:
    folder = os.environ.get("LLMLAB_DATA")
    path = Path(folder or ".") / "openai-openapi" / "openapi.json.gz"
    if not folder or not path.is_file():
        pytest.skip("openai-openapi/openapi.json.gz is nowhere; point LLMLAB_DATA at its folder")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        schemas = json.load(file)["components"]["schemas"]
    return {"schemas": {name: _strict(schema) for name, schema in _amended(schemas).items()}}


def _amended(schemas: dict[str, Any]) -> dict[str, Any]:
    """Allow the nulls that OpenAI's API sends although its description does not have them."""
    schemas = copy.deepcopy(schemas)
    completion = schemas["CreateCompletionResponse"]["properties"]
    choice = completion["choices"]["items"]["properties"]
    lists = choice["logprobs"]["anyOf"][0]["properties"]
    choice["finish_reason"]["nullable"] = True  # in every chunk but the last
    completion["usage"] = {**completion["usage"], "nullable": True}  # with include_usage, likewise
    lists["token_logprobs"]["items"]["nullable"] = True  # the first token of an echoed prompt
    lists["top_logprobs"]["items"]["nullable"] = True
    # The one field that we add, as other servers do.
    schemas["Model"]["properties"]["max_model_len"] = {"type": "integer"}
    return schemas


def _strict(schema: Any) -> Any:
    """Turn OpenAPI 3.0's `nullable` into JSON Schema, and refuse fields that are not described."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items() if key != "nullable"}
    if isinstance(schema.get("properties"), dict) and "allOf" not in schema:
        strict.setdefault("additionalProperties", False)
    if schema.get("nullable") is True:
        return {"anyOf": [strict, {"type": "null"}]}
    return strict
