"""Chat templates: a Jinja program, from the model's folder, that turns messages into text.

A template is foreign code, so it runs in Jinja's sandbox and sees plain data only. It gets what
`transformers` gives it: `messages`, `tools` and `documents` (None), `add_generation_prompt`, the
named special tokens (`bos_token`, …), `raise_exception`, `strftime_now`, the filter `tojson`, loop
controls, and the block `{% generation %}…{% endgeneration %}` around what the assistant says.
Not here: ids (tokenizer.py), which part is the assistant's (chat_spans.py).
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from llmlab.errors import TokenizerError

Message = Mapping[str, Any]
"""One turn: `role` and `content`, and whatever else the template reads."""

CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}
{{- '\\n' }}
{%- else %}
{{- message['content'] + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""The template of tokenizers trained here."""

# What running foreign code can raise, beside Jinja's own errors.
_TEMPLATE_FAILURES = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)


class ChatTemplate:
    """A template with the special tokens it may name.

    Args:
        source: the Jinja text.
        names: `bos_token`, `eos_token`, … to their text.
    """

    def __init__(self, source: str, names: Mapping[str, str]) -> None:
        self.source = source
        self._names = dict(names)

    @property
    def marks_assistant(self) -> bool:
        """Whether the template says what the assistant says, with `{% generation %}`."""
        return re.search(r"\{%[-+]?\s*generation\s*[-+]?%\}", self.source) is not None

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        marks: tuple[str, str] = ("", ""),
    ) -> str:
        """Return the chat as text.

        Args:
            messages: the turns; a key whose value is None counts as missing.
            add_generation_prompt: end with what the assistant's next turn starts with.
            marks: written before and behind what the assistant says.

        Raises:
            TokenizerError: there are no messages, or the template fails on them.
        """
        if not messages:
            raise TokenizerError(
                "the chat has no messages; give at least one {'role': 'user', 'content': …}"
            )
        plain = [_plain_turn(message) for message in messages]
        try:
            return _compiled(self.source).render(
                **self._names,
                messages=plain,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                generation_marks=marks,
            )
        except _TEMPLATE_FAILURES as error:
            roles = [message.get("role") for message in plain]
            raise TokenizerError(
                f"the chat template failed on messages with roles {roles}: {error}; "
                "change the messages or chat_template.jinja"
            ) from error


class _Generation(Extension):
    """Writes `generation_marks` around the body of a `{% generation %}` block."""

    tags = {"generation"}  # noqa: RUF012 -- Jinja reads it from the class

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)

        def mark(index: int) -> nodes.Node:
            marks = nodes.Name("generation_marks", "load")
            return nodes.Output([nodes.Getitem(marks, nodes.Const(index), "load")])

        block = [mark(0), nodes.Scope(body), mark(1)]
        return [node.set_lineno(line) for node in block]


class _PlainNamespace(Namespace):
    """Jinja's namespace without underscore names, which could reach into Python."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"namespace attribute {name!r} starts with an underscore")
        super().__setitem__(name, value)


def _namespace(**values: Any) -> _PlainNamespace:
    space = _PlainNamespace()
    for name, value in values.items():
        space[name] = value
    return space


def _dict(*args: Any, **values: Any) -> dict[Any, Any]:
    return dict(*args, **values)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


@lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    own: dict[str, Any] = {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "namespace": _namespace,
        "dict": _dict,
    }
    environment.globals.update(own)
    return environment.from_string(source)


def _plain_turn(message: Message) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise TokenizerError(
            f"a chat message is {message!r}; each one must be a dict with 'role' and 'content'"
        )
    return {str(key): _plain(item) for key, item in message.items() if item is not None}


def _plain(value: Any) -> Any:
    """Rebuild data from JSON's own types, which have no methods a template could misuse."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    raise TokenizerError(
        f"a chat message holds a {type(value).__name__}; use text, numbers, lists and dicts"
    )
