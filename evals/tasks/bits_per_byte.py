"""bits_per_byte: how many bits the model needs for a byte of text (lower is better).

Unlike loss per token it can be compared between tokenizers. Documents are cut at line ends into
passages of at most 8192 characters, which are scored one by one; the passages of one document count
as one draw in the error bars. The default text is from the files of the standard library that
`data pack` holds out, so a model trained here on `stdlib` has not seen it; a published model very
likely has. Any other text is given as the task's argument.
"""

from collections.abc import Iterator
from pathlib import Path

from llmlab.data import iter_documents
from llmlab.data.packing import is_held_out
from llmlab.data.stdlib import read_source, stdlib_files, stdlib_root
from llmlab.evals.task import Task, TextExample

_HELD_OUT = 0.02  # `val_fraction` of llmlab.data.PackConfig: its default decides what was held out
_PASSAGE_CHARS = 8192
_PASSAGES_A_FILE = 3

VERSION = 1


def bits_per_byte(argument: str | None = None, seed: int = 0) -> Task:
    """Make the task.

    Args:
        argument: a source of text as `data pack` takes it; the held-out standard library when None.
        seed: not used: the texts are fixed.

    Raises:
        DataError: the source cannot be read or holds no text.
    """
    examples = _held_out() if argument is None else _given(argument)
    return Task(
        name="bits_per_byte" if argument is None else f"bits_per_byte:{argument}",
        version=VERSION,
        description=(
            f"bits per byte of {argument or 'the held-out standard library'}, {len(examples)} texts"
        ),
        examples=examples,
    )


def _given(source: str) -> tuple[TextExample, ...]:
    return tuple(
        TextExample(
            id=f"{number}:{Path(document.source).name}:{at}", text=text, cluster=str(number)
        )
        for number, document in enumerate(iter_documents([source]))
        for at, text in enumerate(passages(document.text))
    )


def _held_out() -> tuple[TextExample, ...]:
    """Return the beginning of each held-out file."""
    examples = []
    for path in stdlib_files():
        text = read_source(path)
        if text.strip() and is_held_out(text.encode(), _HELD_OUT):
            name = path.relative_to(stdlib_root()).as_posix()
            examples += [
                TextExample(id=f"{name}:{at}", text=passage, cluster=name)
                for at, passage in enumerate(passages(text))
                if at < _PASSAGES_A_FILE
            ]
    return tuple(examples)


def passages(text: str) -> Iterator[str]:
    """Cut a text into passages of at most 8192 characters, at line ends where there are any."""
    start = 0
    while start < len(text):
        end = start + _PASSAGE_CHARS
        line_end = text.rfind("\n", start, end) + 1
        if end < len(text) and line_end > start:
            end = line_end
        yield text[start:end]
        start = end
