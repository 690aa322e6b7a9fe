"""What structure a request asks its text to have; torch-free, checked when built.

Not here: what only the grammar library can tell (is the regex well formed, can any text satisfy
the schema): `GrammarCompiler` finds that out. The limits are in limits.py.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from llmlab.errors import RequestError
from llmlab.serve.grammar.limits import (
    MAX_CHOICES,
    MAX_WHITESPACE,
    check_grammar,
    check_regex,
    check_schema,
    check_size,
)

Kind = Literal["json_schema", "json_object", "regex", "choice", "grammar"]


@dataclass(frozen=True, kw_only=True)
class GrammarSpec:
    """The structure of a text, named by exactly one of the first five fields.

    JSON never loops on white space: between its parts there is none, or at most `max_whitespace`
    characters. White space inside strings is the text's own; `maxLength` bounds it.

    Raises:
        RequestError: none or several are asked for, or one is malformed or beyond the limits;
            `.param` names the field.
    """

    json_schema: str | Mapping[str, Any] | None = None
    """JSON Schema (draft 2020-12), a dict or its text; kept as text. Properties come in the order
    of the schema; a keyword or format the library does not know is an error, never ignored."""
    json_object: bool = False
    """Any JSON object."""
    regex: str | None = None
    r"""Regular expression the whole text matches, in the syntax of Rust's `regex`: no look-around,
    no back-references, and `\d` is 0 to 9."""
    choice: tuple[str, ...] = ()
    """The text is one of these."""
    grammar: str | None = None
    """EBNF: Lark as llguidance has it (the rule `start`, terminals in capitals), or the GBNF of
    llama.cpp (the rule `root`, `::=`)."""
    max_whitespace: int = 0
    """White-space characters allowed at a place where JSON allows any; 0 is compact JSON."""

    def __post_init__(self) -> None:
        self._check_choice()
        asked = [field.name for field in fields(self) if self._has(field.name)]
        if len(asked) != 1:
            raise RequestError(
                f"{' and '.join(asked) or 'nothing'} asked for; name exactly one of json_schema, "
                "json_object, regex, choice and grammar",
                param=asked[0] if asked else None,
            )
        self._check_whitespace()
        if self.json_schema is not None:
            object.__setattr__(self, "json_schema", _schema_text(self.json_schema))
        if self.regex is not None:
            check_regex(self.regex, "regex")
        if self.grammar is not None:
            check_grammar(self.grammar)

    @property
    def kind(self) -> Kind:
        """The field that is set."""
        kinds: tuple[Kind, ...] = ("json_schema", "json_object", "regex", "choice")
        return next((kind for kind in kinds if self._has(kind)), "grammar")

    @property
    def num_bytes(self) -> int:
        """Bytes of the text it takes to say it."""
        return sum(
            len(text.encode())
            for text in (self.json_schema, self.regex, self.grammar, *self.choice)
            if isinstance(text, str)
        )

    def _has(self, name: str) -> bool:
        value = getattr(self, name)
        return name != "max_whitespace" and value is not None and value is not False and value != ()

    def _check_whitespace(self) -> None:
        value = self.max_whitespace
        if type(value) is not int or not 0 <= value <= MAX_WHITESPACE:
            raise RequestError(
                f"max_whitespace={value!r} is not usable; use a whole number from 0 to "
                f"{MAX_WHITESPACE}",
                param="max_whitespace",
            )

    def _check_choice(self) -> None:
        if not isinstance(self.choice, (list, tuple)):
            raise RequestError(
                f"choice is {type(self.choice).__name__}; send a list of strings", param="choice"
            )
        object.__setattr__(self, "choice", tuple(self.choice))
        if len(self.choice) > MAX_CHOICES:
            raise RequestError(
                f"choice has {len(self.choice)} texts; use at most {MAX_CHOICES}", param="choice"
            )
        for text in self.choice:
            if not isinstance(text, str) or not text:
                raise RequestError(f"choice has {text!r}; use non-empty strings", param="choice")
        check_size("".join(self.choice), "choice")


def _schema_text(schema: object) -> str:
    """Return a schema as compact JSON, checked."""
    if isinstance(schema, str):
        check_size(schema, "json_schema")
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise RequestError(
                f"json_schema is not JSON that can be read ({_short(error)}); send a schema object",
                param="json_schema",
            ) from error
    if not isinstance(schema, Mapping):
        raise RequestError(
            f"json_schema is {type(schema).__name__}; send an object, {{}} allows any JSON",
            param="json_schema",
        )
    check_schema(schema)
    try:
        text = json.dumps(schema, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise RequestError(
            f"json_schema cannot be written as JSON ({_short(error)}); use JSON values only",
            param="json_schema",
        ) from error
    check_size(text, "json_schema")
    return text


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
