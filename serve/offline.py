"""Offline use: whole outputs in the order of their prompts, out of an engine's steps.

Not here: what a step does (engine.py), requests that somebody streams (async_engine.py).
"""

import time
from collections import abc

from llmlab.serve.deltas import Delta, Output

Step = abc.Callable[[], list[tuple[int, Delta]]]
"""Runs one step and returns what it added, by request number."""


class Collector:
    """Gathers deltas into outputs; several calls may be under way, and each steps for all."""

    def __init__(self) -> None:
        self._collected: dict[int, list[tuple[float, Delta]]] = {}

    def outputs(
        self,
        numbers: abc.Sequence[int],
        prompts: abc.Sequence[abc.Sequence[int]],
        *,
        step: Step,
        running: abc.Container[int],
        start: float,
    ) -> abc.Generator[Output, None, None]:
        """Yield the output of each request as soon as it and those before it have ended.

        Args:
            numbers: the requests.
            prompts: theirs.
            step: called until they have ended.
            running: numbers of the requests that have not.
            start: when they came, by `time.monotonic`.
        """
        self._collected.update({number: [] for number in numbers})
        try:
            for number, prompt_ids in zip(numbers, prompts, strict=True):
                while number in running:
                    self._add(step())
                timed = self._collected.pop(number)
                first = next((at for at, delta in timed if delta.token_ids), None)
                yield Output.from_deltas(
                    prompt_ids,
                    [delta for _, delta in timed],
                    first_token_s=None if first is None else first - start,
                    total_s=timed[-1][0] - start,
                )
        finally:
            for number in numbers:
                self._collected.pop(number, None)

    def _add(self, deltas: list[tuple[int, Delta]]) -> None:
        for number, delta in deltas:
            if number in self._collected:
                self._collected[number].append((time.monotonic(), delta))
