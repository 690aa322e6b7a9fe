"""`llmlab chat`: a conversation with any server that speaks the OpenAI API, on the terminal."""

import os
import sys
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path

from llmlab.errors import ConfigError, MissingExtraError, ServerError
from llmlab.serve.config import ChatConfig

try:
    import openai
    from openai.types.chat import ChatCompletionMessageParam
except ImportError as error:
    raise MissingExtraError("openai", "serve") from error

_HELP = "/reset forgets the conversation, /exit or ctrl-d ends it"


def run(config: ChatConfig) -> None:
    """Talk to a server: line by line on a terminal, one answer to a piped stdin."""
    with _client(config) as client:
        try:
            conversation = Conversation(client, config, config.model or _first_model(client))
            if sys.stdin.isatty():
                _interactive(conversation)
            else:
                _show(conversation.answer(sys.stdin.read().strip()))
        except openai.APIConnectionError as error:
            raise ServerError(
                f"no server answers at {config.base_url}; start one with `llmlab serve`, or check "
                "--base-url"
            ) from error
        except openai.APIError as error:
            raise ServerError(f"{config.base_url} refused: {error.message}") from error


class Conversation:
    """The turns so far, and the client that asks for the next one.

    Args:
        client: speaks to the server.
        config: how answers are sampled.
        model: name the server knows.
    """

    def __init__(self, client: openai.OpenAI, config: ChatConfig, model: str) -> None:
        self.model = model
        self._client = client
        self._config = config
        self._messages: list[ChatCompletionMessageParam] = []
        self.reset()

    def reset(self) -> None:
        """Forget every turn but the system message."""
        system = self._config.system
        self._messages = [{"role": "system", "content": system}] if system else []

    def answer(self, text: str) -> Generator[str]:
        """Yield the answer to `text` piece by piece.

        What was said until the end, an interrupt included, becomes part of the conversation; a
        refused turn does not.
        """
        asked: list[ChatCompletionMessageParam] = [
            *self._messages,
            {"role": "user", "content": text},
        ]
        limit = self._config.max_tokens
        chunks = self._client.chat.completions.create(
            model=self.model,
            messages=asked,
            temperature=self._config.temperature,
            max_tokens=openai.omit if limit is None else limit,
            stream=True,
        )
        said = []
        try:
            with chunks:
                for chunk in chunks:
                    if chunk.choices and chunk.choices[0].delta.content:
                        said.append(chunk.choices[0].delta.content)
                        yield said[-1]
        finally:
            if said:
                self._messages = [*asked, {"role": "assistant", "content": "".join(said)}]


def _interactive(conversation: Conversation) -> None:
    print(f"{conversation.model}  ({_HELP})", file=sys.stderr)
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            print(file=sys.stderr)
            return
        if text == "/exit":
            return
        if text == "/reset":
            conversation.reset()
        elif text.startswith("/"):
            print(_HELP, file=sys.stderr)
        elif text:
            _turn(conversation, text)


def _turn(conversation: Conversation, text: str) -> None:
    """Show one answer; ctrl-c ends the answer, not the conversation."""
    try:
        with closing(conversation.answer(text)) as pieces:
            _show(pieces)
    except KeyboardInterrupt:
        print("\n(stopped)", file=sys.stderr)
    except openai.APIError as error:
        print(f"refused: {error.message}", file=sys.stderr)


def _show(pieces: Iterator[str]) -> None:
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def _client(config: ChatConfig) -> openai.OpenAI:
    url = config.base_url.rstrip("/")
    url = url if url.endswith("/v1") else f"{url}/v1"
    return openai.OpenAI(base_url=url, api_key=_api_key(config.api_key_file))


def _api_key(path: Path | None) -> str:
    if path is None:
        return os.environ.get("OPENAI_API_KEY") or "none"
    try:
        return path.read_text(encoding="utf-8").split()[0]
    except (OSError, IndexError) as error:
        raise ConfigError(f"api_key_file={path} has no key to read; check the path") from error


def _first_model(client: openai.OpenAI) -> str:
    models = client.models.list().data
    if not models:
        raise ServerError("the server lists no model; name one with --model")
    return models[0].id
