"""What the parts of benchmarks/serve.py share: processes that end with a part, rounds, prompts."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks.serve_processes import Unavailable, Worker, worker
from benchmarks.timing import spread
from llmlab.serve.bench.conversations import plain_token_ids
from llmlab.tokenizers import Tokenizer

Started = TypeVar("Started")


@dataclass
class Setup:
    """One part under way."""

    model: Path
    """The model folder."""
    folder: Path
    """For files made on the way."""
    rounds: int
    device: str
    stack: ExitStack
    """Ends the processes with the part."""
    left_out: list[str] = field(default_factory=list)
    """What was not compared, and why."""
    engines: dict[str, Worker] = field(default_factory=dict)
    """By name."""
    versions: dict[str, str] = field(default_factory=dict)

    def add_engine(self, name: str, command: Callable[[], list[str]]) -> None:
        """Start a worker, or note why it is left out."""
        engine = self.start(name, lambda: worker(command()))
        if engine is not None:
            self.engines[name] = engine
            self.versions[name] = engine.about["name"]

    def start(
        self, name: str, make: Callable[[], AbstractContextManager[Started]]
    ) -> Started | None:
        """Enter a context that ends with the part; None, and a note, where it is unavailable."""
        try:
            started = self.stack.enter_context(make())
        except Unavailable as error:
            self.left_out.append(f"{name}: {error}")
            print(f"left out: {name}: {error}", flush=True)
            return None
        print(f"started {name}", flush=True)
        return started

    def prompts(self, number: int, count: int, length: int) -> list[list[int]]:
        """Return random prompts; another number, other prompts."""
        rng = np.random.default_rng([number, length])
        return rng.choice(self._token_ids, (count, length)).tolist()

    @cached_property
    def _token_ids(self) -> np.ndarray:
        return plain_token_ids(Tokenizer.load(self.model))


def in_turn(
    ways: Mapping[str, Callable[[int], float]], rounds: int, *, warmups: int = 1
) -> dict[str, list[float]]:
    """Return what each way gave in each round; every second round goes backwards.

    Args:
        ways: take the number of the round, negative in a warm-up, and return a rate or a time.
        rounds: how often.
        warmups: rounds before that are not kept.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(-warmups, rounds):
        for name in names if number % 2 == 0 else reversed(names):
            value = ways[name](number)
            if number >= 0:
                found[name].append(value)
                print(f"round {number + 1}/{rounds}  {name}  {value:.4g}", flush=True)
    return found


def compared(
    found: Mapping[str, Sequence[float]], pairs: Sequence[tuple[str, str]]
) -> dict[str, dict[str, Any]]:
    """Return the spread of every way, and of ratios within a round.

    Args:
        found: what `in_turn` gave.
        pairs: what is divided by what; left out where one of them is missing.
    """
    return {
        "ways": {name: spread(values) for name, values in found.items()},
        "ratios": {
            f"{over} / {under}": spread(
                [a / b for a, b in zip(found[over], found[under], strict=True)]
            )
            for over, under in pairs
            if over in found and under in found
        },
    }
