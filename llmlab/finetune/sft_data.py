"""Chats as training examples: token ids, and a mask of what the model shall learn to say.

Reads JSON lines (.jsonl, .jsonl.gz). A line has `messages`, a list of {"role", "content"}; or
`prompt` and `completion`, which count as one user and one assistant message. The tokenizer's chat
template turns them into ids; scored is what the assistant says, its end-of-turn token included.

A batch is padded on the right to its longest example and padding has the label -100. Under causal
attention no token sees what stands to its right, so padding needs no mask, and no example ever
sees another one. Examples of similar length share a batch, which keeps the padding small. An
example above the length limit is left out and counted: cutting it would cut off how an answer ends.
"""

import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmlab.data.batch import IGNORED, Batch
from llmlab.data.packing import is_held_out
from llmlab.errors import DataError
from llmlab.tokenizers import Tokenizer

_SORTED_BATCHES = 32
"""Batches whose examples are sorted by length together."""

Messages = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Example:
    """One chat."""

    ids: tuple[int, ...]
    """Token ids of the whole chat."""

    scored: tuple[bool, ...]
    """True where the token is what the assistant says."""


@dataclass(frozen=True, slots=True)
class Examples:
    """What a file holds."""

    train: list[Example]
    val: list[Example]
    num_too_long: int
    """Examples left out."""


def read_examples(
    path: Path, tokenizer: Tokenizer, *, max_len: int, val_fraction: float = 0.0
) -> Examples:
    """Read and tokenize every chat of a file; a hash of its content decides what is held out.

    Args:
        path: JSON lines, plain or gzipped.
        tokenizer: with a chat template.
        max_len: longest example in tokens.
        val_fraction: share held out.

    Raises:
        DataError: a line is malformed (names it, and its keys), or nothing is left to train on.
        TokenizerError: there is no chat template, or it refuses a chat.
    """
    train: list[Example] = []
    val: list[Example] = []
    num_too_long = 0
    for messages in read_chats(path):
        ids, scored = tokenizer.encode_chat_masked(messages)
        if len(ids) > max_len:
            num_too_long += 1
            continue
        content = json.dumps(messages, sort_keys=True).encode()
        side = val if is_held_out(content, val_fraction) else train
        side.append(Example(tuple(ids), tuple(scored)))
    if not train:
        raise DataError(
            f"{path} leaves nothing to train on: {num_too_long} examples are longer than "
            f"max_len={max_len} tokens, {len(val)} are held out; raise --max-len or lower "
            "--val-fraction"
        )
    return Examples(train, val, num_too_long)


def read_chats(path: Path) -> Iterator[Messages]:
    """Yield the messages of every line.

    Raises:
        DataError: the file is missing, or a line is malformed.
    """
    if not path.is_file():
        raise DataError(f"{path} is not a file; pass a .jsonl file of chats to --data")
    count = 0
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8") as file
        ):
            for number, line in enumerate(file, start=1):
                if line.strip():
                    count += 1
                    yield _messages(line, f"{path} line {number}")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}; it must be UTF-8 JSON lines") from error
    if not count:
        raise DataError(f"{path} is empty; give at least one example")


def pad_batch(examples: Sequence[Example], pad_id: int) -> Batch:
    """Return a batch, (B, T), T the longest example less one.

    Args:
        examples: B of them.
        pad_id: fills input_ids on the right; which id it is changes no loss.
    """
    T = max(len(example.ids) for example in examples) - 1
    input_ids = torch.full((len(examples), T), pad_id)  # (B, T)
    labels = torch.full((len(examples), T), IGNORED)  # (B, T)
    for row, example in enumerate(examples):
        ids = torch.tensor(example.ids)
        scored = torch.tensor(example.scored[1:])
        input_ids[row, : len(ids) - 1] = ids[:-1]
        labels[row, : len(ids) - 1] = torch.where(scored, ids[1:], IGNORED)
    return Batch(input_ids, labels)


class ExampleBatches:
    """Endless shuffled batches of examples; every example comes once an epoch.

    The order is a pure function of (seed, position), so resuming is exact.

    Args:
        examples: all of them.
        batch_size: examples a batch, B; the last of an epoch may have fewer.
        pad_id: fills input_ids.
        seed: of the order.
    """

    def __init__(
        self, examples: Sequence[Example], *, batch_size: int, pad_id: int, seed: int
    ) -> None:
        self._examples = examples
        self._batch_size = batch_size
        self._pad_id = pad_id
        self.num_batches = -(-len(examples) // batch_size)
        """Batches an epoch."""
        self._seed = seed
        self._position = 0
        self._order: tuple[int, list[list[int]]] = (-1, [])
        digest = hashlib.sha256(b"".join(np.array(e.ids).tobytes() for e in examples)).hexdigest()
        self._identity = {"batch_size": batch_size, "seed": seed, "examples_sha256": digest}

    def next(self) -> Batch:
        """Return the next batch."""
        epoch, index = divmod(self._position, self.num_batches)
        if self._order[0] != epoch:
            self._order = (epoch, self._batches_of(epoch))
        self._position += 1
        return pad_batch([self._examples[at] for at in self._order[1][index]], self._pad_id)

    def state_dict(self) -> dict[str, Any]:
        """Return the position, and what it is a position in."""
        return {"position": self._position, **self._identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position.

        Raises:
            DataError: it is a position in other examples, or with another seed or batch size.
        """
        for key, value in self._identity.items():
            if state.get(key) != value:
                raise DataError(
                    f"cannot resume: the saved {key} is {state.get(key)!r}, this run has {value!r};"
                    f" resume with the same data and settings, or start anew"
                )
        self._position = int(state["position"])

    def _batches_of(self, epoch: int) -> list[list[int]]:
        generator = np.random.Generator(np.random.PCG64([self._seed, epoch]))
        order = generator.permutation(len(self._examples)).tolist()
        window = self._batch_size * _SORTED_BATCHES
        batches: list[list[int]] = []
        for start in range(0, len(order), window):
            near = sorted(order[start : start + window], key=self._len)
            batches += (
                near[at : at + self._batch_size] for at in range(0, len(near), self._batch_size)
            )
        return [batches[at] for at in generator.permutation(len(batches))]

    def _len(self, index: int) -> int:
        return len(self._examples[index].ids)


def _messages(line: str, place: str) -> Messages:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{place} is not JSON ({error.msg}): {line[:60].strip()!r}") from error
    match record:
        case {"prompt": str(prompt), "completion": str(completion)}:
            return [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": completion},
            ]
        case {"messages": [*messages]} if all(map(_is_message, messages)):
            if not any(message["role"] == "assistant" for message in messages):
                raise DataError(f"{place} has no message with the role 'assistant' to learn from")
            return messages
        case {"messages": messages}:
            raise DataError(
                f"{place}: 'messages' must be a list of objects with the strings 'role' and "
                f"'content', found {json.dumps(messages)[:80]}"
            )
    keys = sorted(record) if isinstance(record, Mapping) else type(record).__name__
    raise DataError(
        f"{place} has {keys}; it needs 'messages', or 'prompt' and 'completion' with strings"
    )


def _is_message(message: Any) -> bool:
    match message:
        case {"role": str(), "content": str()}:
            return True
    return False
