"""Data sets of the Hugging Face hub, streamed (needs the extra `train-extras`).

`hf:OWNER/DATASET[:CONFIG][:SPLIT]`; a single part after the name is a split if it is one of the
usual words (train, validation, test ...), else a config. Rows have the shapes of JSON records.
"""

from collections.abc import Iterator
from typing import Any

from llmlab.data.formats import record_text
from llmlab.errors import DataError, MissingExtraError

try:
    import datasets
except ImportError as error:
    raise MissingExtraError("datasets", "train-extras") from error

_SPLITS = frozenset({"dev", "test", "train", "valid", "validation"})


def read_hub(source: str) -> Iterator[tuple[str, str]]:
    """Yield (place, text) for every row.

    Raises:
        DataError: the address has another form, or the hub cannot be reached or has no such data.
    """
    name, config, split = parse_hub(source)
    for number, row in enumerate(_rows(source, name, config, split)):
        yield f"{source}#{number}", record_text(row, f"{source} row {number}")


def parse_hub(source: str) -> tuple[str, str | None, str]:
    """Split `hf:OWNER/DATASET[:CONFIG][:SPLIT]` into name, config and split (default train)."""
    name, *rest = source.removeprefix("hf:").split(":")
    if name.count("/") != 1 or len(rest) > 2:
        raise DataError(
            f"{source!r} is not of the form hf:OWNER/DATASET[:CONFIG][:SPLIT]; "
            "for example hf:roneneldan/TinyStories:train"
        )
    if len(rest) == 1 and rest[0] in _SPLITS:
        return name, None, rest[0]
    config, split = [*rest, "", ""][:2]
    return name, config or None, split or "train"


def _rows(source: str, name: str, config: str | None, split: str) -> Iterator[Any]:
    try:
        yield from datasets.load_dataset(name, name=config, split=split, streaming=True)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"cannot stream {source}: {reason}; check the name, the split and the network, "
            "or download the files and give their folder"
        ) from error
