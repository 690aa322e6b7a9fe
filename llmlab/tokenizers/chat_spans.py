"""Which characters of a rendered chat are whose.

Two questions, one means: characters that occur in no message are put into the messages before
they are rendered, and found again in the text.

* *User text must not forge special tokens.* Inside messages, the first character of every special
  token is swapped for a guard. The template's own special tokens stay whole, so the rendered text
  can be matched for special tokens as it is; then the guards are swapped back. A template that
  cuts, trims or joins messages does no harm: what it leaves of a guarded token is still guarded.
  Not caught is a token pieced together from two fields that the template writes side by side.
  (`sanitize_control_tokens` of `transformers` serves the same end.)
* *What does the assistant say?* A template with `{% generation %}` blocks is rendered with marks
  around them. Without, a turn is what the text gains when the turn is added, up to and including
  its last end-of-turn token.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmlab.errors import TokenizerError
from llmlab.tokenizers.chat import ChatTemplate, Message
from llmlab.tokenizers.encoder import Span

# Noncharacters first: Unicode keeps them out of text that is exchanged.
_SPARE = [*range(0xFDD0, 0xFDF0), *range(0xE000, 0xF900)]


@dataclass(frozen=True)
class RenderedChat:
    """A chat as text in which messages hold no special token."""

    text: str
    """The text, guards included; as long as the text without them."""

    guards: dict[int, str]
    """Guard to the character it stands for, as `str.translate` takes it."""

    spans: tuple[Span, ...] = ()
    """What the assistant says, its end-of-turn tokens included."""

    def plain(self, start: int, end: int) -> str:
        """Return a part of the text without guards."""
        return self.text[start:end].translate(self.guards)

    def spans_within(self, start: int, end: int) -> list[Span]:
        """Return what of the spans lies in a part, counted from its start."""
        return [
            (max(first, start) - start, min(last, end) - start)
            for first, last in self.spans
            if first < end and last > start
        ]


def render_guarded(
    template: ChatTemplate,
    messages: Sequence[Message],
    special_tokens: Iterable[str],
    *,
    add_generation_prompt: bool,
) -> RenderedChat:
    """Render a chat so that only the template's special tokens can be matched."""
    messages, guards, _ = _guarded(messages, special_tokens)
    text = template.render(messages, add_generation_prompt=add_generation_prompt)
    return RenderedChat(text, guards)


def render_spans(
    template: ChatTemplate,
    messages: Sequence[Message],
    special_tokens: Iterable[str],
    stop_tokens: Iterable[str],
) -> RenderedChat:
    """Render a chat, guarded, and find what the assistant says.

    Raises:
        TokenizerError: the template has no `{% generation %}` blocks and rewrites earlier turns,
            or the chat starts with the assistant, so that its part cannot be found.
    """
    messages, guards, marks = _guarded(messages, special_tokens)
    if template.marks_assistant:
        marked = template.render(messages, add_generation_prompt=False, marks=marks)
        text, spans = _take_marks(marked, marks)
    else:
        text = template.render(messages, add_generation_prompt=False)
        stops = list(stop_tokens)
        spans = [
            _turn_span(template, messages, turn, text, stops)
            for turn, message in enumerate(messages)
            if message.get("role") == "assistant"
        ]
    return RenderedChat(text, guards, tuple(spans))


def _take_marks(marked: str, marks: tuple[str, str]) -> tuple[str, list[Span]]:
    """Split a text at its marks; every second piece is the assistant's."""
    pieces = re.split(f"[{marks[0]}{marks[1]}]", marked)
    spans, at = [], 0
    for number, piece in enumerate(pieces):
        if number % 2 == 1 and piece:
            spans.append((at, at + len(piece)))
        at += len(piece)
    return "".join(pieces), spans


def _turn_span(
    template: ChatTemplate,
    messages: Sequence[Message],
    turn: int,
    text: str,
    stop_tokens: Sequence[str],
) -> Span:
    """Find an assistant turn as what it adds to the chat before it."""
    if turn == 0:
        raise TokenizerError(
            "the chat starts with the assistant and the chat template has no {% generation %} "
            "block; add a user turn before it, or the block to chat_template.jinja"
        )
    before = template.render(messages[:turn], add_generation_prompt=True)
    through = template.render(messages[: turn + 1], add_generation_prompt=False)
    if not (through.startswith(before) and text.startswith(through)):
        raise TokenizerError(
            f"the chat template writes turn {turn} differently when turns follow, so the "
            "assistant's part cannot be found; put {% generation %} … {% endgeneration %} around "
            "it in chat_template.jinja"
        )
    ends = [through.rfind(stop, len(before)) + len(stop) for stop in stop_tokens]
    ends = [end for stop, end in zip(stop_tokens, ends, strict=True) if end >= len(before + stop)]
    return len(before), max(ends, default=len(through))


def _guarded(
    messages: Sequence[Message], special_tokens: Iterable[str]
) -> tuple[list[Message], dict[int, str], tuple[str, str]]:
    """Return messages with guards, the guards, and two more characters the messages lack."""
    longest_first = sorted(special_tokens, key=len, reverse=True)
    firsts = sorted({token[0] for token in longest_first})
    opening, closing, *spare = _spare_characters(messages, 2 + len(firsts))
    guards = dict(zip(firsts, spare, strict=True))
    restore = {ord(guard): first for first, guard in guards.items()}
    if guards:
        starts = re.compile(f"(?=(?:{'|'.join(map(re.escape, longest_first))})).", re.DOTALL)

        def guard(text: str) -> str:
            return starts.sub(lambda match: guards[match[0]], text)

        messages = [_mapped(message, guard) for message in messages]
    return list(messages), restore, (opening, closing)


def _spare_characters(messages: Sequence[Message], number: int) -> list[str]:
    used = {char for text in _strings(messages) for char in text}
    spare = [char for char in map(chr, _SPARE) if char not in used][:number]
    if len(spare) < number:
        raise TokenizerError(
            "the chat holds nearly every private-use character, and encoding needs "
            f"{number} of them; leave some out"
        )
    return spare


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """Copy a message with every string in it changed, keys excepted."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(item, change) for item in value]
    return value
