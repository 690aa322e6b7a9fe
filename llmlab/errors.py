"""The one family of errors a user can meet.

Each message says what was wrong, the value, and the fix; the command line shows it as one line
and exits with status 1.

    LabError
    ├── ConfigError         a field, a flag or a TOML key has an unusable value
    ├── DataError           a source, a corpus or a shards folder cannot be used
    ├── TokenizerError      a tokenizer folder or a chat template cannot be used
    ├── ModelError          a model, adapter, checkpoint or GGUF file cannot be used
    ├── ServerError         the server cannot start, or a URL does not answer as it should
    ├── RequestError        one request the server refuses (HTTP 4xx); names the parameter
    ├── RetrievalError      an index folder or a retrieval request cannot be used
    ├── EvalError           a task or a results folder cannot be used
    ├── OutputError         an output cannot be written; nothing half-written is left
    └── MissingExtraError   an optional package is not installed; names the install command
"""

from collections.abc import Iterable
from difflib import get_close_matches


class LabError(Exception):
    """Base of every error raised on purpose by llmlab."""


class ConfigError(LabError):
    """A field, a flag or a TOML key has an unusable value."""


class DataError(LabError):
    """A source, a corpus or a shards folder cannot be used."""


class TokenizerError(LabError):
    """A tokenizer folder or a chat template cannot be used."""


class UnsupportedPart(TokenizerError):
    """A tokenizer file is whole, but a part of its pipeline is none of ours."""


class ModelError(LabError):
    """A model, adapter, checkpoint or GGUF file cannot be used."""


class ServerError(LabError):
    """The server cannot start, or a URL does not answer as it should."""


class RequestError(LabError):
    """One request the server refuses.

    Args:
        message: what was wrong, the value, the fix.
        param: the request field at fault, as the API names it.
        status: HTTP status, 4xx.
    """

    def __init__(self, message: str, *, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param = param
        self.status = status


class RetrievalError(LabError):
    """An index folder or a retrieval request cannot be used."""


class EvalError(LabError):
    """A task or a results folder cannot be used."""


class OutputError(LabError):
    """An output cannot be written; nothing half-written is left behind."""


class MissingExtraError(LabError):
    """An optional package is not installed.

    Args:
        package: the import name that failed.
        extra: the llmlab extra that carries it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is not installed; run `pip install 'llmlab[{extra}]'` "
            f"(in a checkout: `pip install -e '.[{extra}]'`)"
        )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return '; did you mean X?' for the nearest known name, or '; known: a, b' without one."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(names)}"
