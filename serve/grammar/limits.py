"""How large a grammar may be: checks in linear time, before any library sees it.

They turn away what is certainly too much, with a message that names the limit. What is small and
hard all the same meets the limits of the compiler (compiler.py).
"""

import re
from collections.abc import Mapping

from llmlab.errors import RequestError

MAX_BYTES = 128 * 1024
"""Longest schema, regex, grammar or list of choices."""
MAX_DEPTH = 100
"""Deepest nesting of JSON or of groups."""
MAX_NODES = 20_000
"""Values in a schema, names of properties included."""
MAX_CHOICES = 4_096
"""Entries of `choice`, or of an `enum`."""
MAX_REPEAT = 100_000
"""Highest count of a repetition, in a regex or in `maxItems`, `minLength` and their like."""
MAX_RULES = 4_096
"""Rules of an EBNF grammar."""
MAX_WHITESPACE = 16
"""Most white-space characters at one place of JSON."""

_COUNTS = frozenset(
    ["minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"]
)
_ESCAPED = re.compile(r"\\.", re.DOTALL)
_REPEAT = re.compile(r"\{\s*(\d*)\s*,?\s*(\d*)\s*\}|~\s*(\d+)(?:\s*\.\.\s*(\d+))?")
_RULE = re.compile(r"^[ \t]*[?!]?[\w-]+[ \t]*(?:\[[^\]\n]*\][ \t]*)?(?:::=|:)", re.MULTILINE)
_ATTRIBUTE = re.compile(
    r"^[ \t]*[?!]?[\w-]+[ \t]*\[[^\]\n]*\b(max_tokens|temperature|stop)\b", re.MULTILINE
)
_FORBIDDEN = {
    "%json": "ask for json_schema, whose white space is bounded",
    "%llguidance": "leave its options out",
}


def check_size(text: str, param: str) -> None:
    """Check the bytes of a text.

    Raises:
        RequestError: they are too many, or it has half a surrogate pair.
    """
    if len(text) <= MAX_BYTES:
        try:
            if len(text.encode()) <= MAX_BYTES:
                return
        except UnicodeEncodeError as error:
            raise RequestError(
                f"{param} has the half of a surrogate pair at {error.start}; send whole characters",
                param=param,
            ) from error
    raise RequestError(
        f"{param} has {len(text)} characters; use at most {MAX_BYTES} bytes", param=param
    )


def check_regex(text: object, param: str) -> None:
    """Check the size, the nesting and the repetitions of a regex.

    Raises:
        RequestError: it is no text, empty or beyond a limit.
    """
    if not isinstance(text, str) or not text:
        raise RequestError(f"{param}={text!r} is not a non-empty string", param=param)
    check_size(text, param)
    _check_groups(_ESCAPED.sub("", text), param)


def check_grammar(text: object) -> None:
    """Check the size, nesting and repetitions of an EBNF grammar, and what it may not say.

    Raises:
        RequestError: it is no text, empty or beyond a limit, or it uses an extension that the
            server cannot honour.
    """
    if not isinstance(text, str) or not text.strip():
        raise RequestError(f"grammar={text!r} is not a non-empty string", param="grammar")
    check_size(text, "grammar")
    num_rules = len(_RULE.findall(text))
    if num_rules > MAX_RULES:
        raise RequestError(
            f"grammar has {num_rules} rules; use at most {MAX_RULES}", param="grammar"
        )
    if text.lstrip().startswith("{"):  # the library would take it for JSON of its own
        raise RequestError(
            "grammar starts with a brace, which no EBNF does; start with a rule", param="grammar"
        )
    for word, fix in _FORBIDDEN.items():
        if word in text:
            raise RequestError(
                f"grammar uses {word}, which is not supported; {fix}", param="grammar"
            )
    if found := _ATTRIBUTE.search(text):
        raise RequestError(
            f"grammar sets {found[1]} for a rule, which is not supported; leave it out",
            param="grammar",
        )
    _check_groups(_ESCAPED.sub("", text), "grammar")


def check_schema(schema: Mapping[str, object]) -> None:
    """Check the depth, the number of values and the counts of a JSON schema.

    Raises:
        RequestError: it is beyond a limit, or sets options of the library.
    """
    if "x-guidance" in schema:
        raise RequestError(
            "json_schema has x-guidance, which is no keyword of JSON Schema; leave it out",
            param="json_schema",
        )
    num_nodes, level = 0, [schema]
    for _ in range(MAX_DEPTH + 1):
        children: list[object] = []
        for node in level:
            num_nodes += 1
            children += _children(node)
            if num_nodes + len(children) > MAX_NODES:
                raise RequestError(
                    f"json_schema has more than {MAX_NODES} values; make it smaller",
                    param="json_schema",
                )
        level = children
        if not level:
            return
    raise RequestError(
        f"json_schema is nested more than {MAX_DEPTH} levels deep; use $ref for what repeats",
        param="json_schema",
    )


def _children(node: object) -> list[object]:
    """Return the values inside a value of a schema, and check its keywords."""
    if isinstance(node, (list, tuple)):
        return list(node)
    if not isinstance(node, Mapping):
        return []
    for key, value in node.items():
        if key in _COUNTS and isinstance(value, (int, float)) and value > MAX_REPEAT:
            raise RequestError(
                f"json_schema has {key}={value}; use at most {MAX_REPEAT}", param="json_schema"
            )
        if key == "enum" and isinstance(value, (list, tuple)) and len(value) > MAX_CHOICES:
            raise RequestError(
                f"json_schema has an enum of {len(value)} values; use at most {MAX_CHOICES}",
                param="json_schema",
            )
        if key == "pattern" and isinstance(value, str) and value:
            check_regex(value, "json_schema")
        if key == "patternProperties" and isinstance(value, Mapping):
            for pattern in value:
                _check_groups(_ESCAPED.sub("", str(pattern)), "json_schema")
    return list(node.values())


def _check_groups(text: str, param: str) -> None:
    """Check how deep brackets nest and how often a repetition repeats; escapes are taken out."""
    depth = 0
    for found in re.finditer(r"[()]", text):
        depth += 1 if found[0] == "(" else -1
        if depth > MAX_DEPTH:
            raise RequestError(
                f"{param} has groups nested more than {MAX_DEPTH} deep; flatten it", param=param
            )
    for found in _REPEAT.finditer(text):
        for count in filter(None, found.groups()):
            if len(count) > 9 or int(count) > MAX_REPEAT:
                raise RequestError(
                    f"{param} repeats {count[:20]} times; use at most {MAX_REPEAT}", param=param
                )
