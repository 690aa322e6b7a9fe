"""A request's structure in the words of the library: Lark rules around JSON Schema.

Not here: regexes and GBNF, which the library itself converts, in the child (worker.py).
"""

import json
from typing import Any

from llmlab.serve.grammar.spec import GrammarSpec


def library_text(spec: GrammarSpec) -> tuple[str, str]:
    """Return what kind of text the library gets, "lark", "regex" or "grammar", and the text."""
    if spec.regex is not None:
        return "regex", spec.regex
    if spec.grammar is not None:
        return "grammar", spec.grammar
    if spec.choice:
        # A terminal, so that a choice which starts another one is no ambiguity.
        return "lark", f"start: CHOICE\nCHOICE: {' | '.join(map(json.dumps, spec.choice))}"
    schema = {"type": "object"} if spec.json_schema is None else json.loads(str(spec.json_schema))
    options = _json_options(spec.max_whitespace)
    return "lark", f"start: %json {json.dumps(schema | {'x-guidance': options})}"


def _json_options(max_whitespace: int) -> dict[str, Any]:
    """Return how JSON is written: compact, or with some white space at each place."""
    if not max_whitespace:
        return {"whitespace_flexible": False}
    return {"whitespace_pattern": rf"[\x20\x0A\x0D\x09]{{1,{max_whitespace}}}"}
