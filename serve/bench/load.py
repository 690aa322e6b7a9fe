"""Load on one server: so many requests at once, or arrivals at random moments.

A level ends after a number of requests or a time; it never waits longer than a request may take,
and gives up on a server that has failed many times in a row. Not here: prompts, statistics.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from llmlab.serve.bench.client import Question, Target
from llmlab.serve.bench.config import Level
from llmlab.serve.bench.conversations import Conversations
from llmlab.serve.bench.traces import Trace

GIVE_UP = 50
"""Failures in a row after which nothing more is asked."""


@dataclass
class Run:
    """The requests of a level, as they end."""

    began_s: float = field(default_factory=time.perf_counter)
    traces: list[Trace] = field(default_factory=list)
    num_failed_last: int = 0
    """Failures since the last answer that was complete."""

    @property
    def seconds(self) -> float:
        """From the first request to the end of the last."""
        return max((trace.end_s for trace in self.traces), default=self.began_s) - self.began_s

    def add(self, trace: Trace) -> None:
        """Take what came of a request."""
        self.traces.append(trace)
        self.num_failed_last = 0 if trace.error is None else self.num_failed_last + 1


async def press(
    target: Target,
    level: Level,
    conversations: Conversations,
    *,
    num_requests: int | None,
    seconds: float | None,
    arrivals: Iterator[float],
    on_trace: Callable[[Run], None],
) -> Run:
    """Ask until enough was asked, and wait for the answers.

    Args:
        target: the server.
        level: how many at once, or that they come when `arrivals` says.
        conversations: what to ask.
        num_requests: turns to ask together; None is no limit.
        seconds: start no conversation later than this; None is no limit.
        arrivals: seconds from the beginning at which a conversation starts, for a rate.
        on_trace: is told after each request.
    """
    run = Run()
    ends_s = run.began_s + (seconds if seconds is not None else np.inf)
    limit = None if num_requests is None else -(-num_requests // conversations.turns)
    supply = itertools.islice(conversations, limit)

    def goes_on() -> bool:
        return time.perf_counter() < ends_s and run.num_failed_last < GIVE_UP

    async def worker() -> None:
        for turns in supply:
            if not goes_on():
                return
            await talk(target, turns, run, on_trace)

    async with asyncio.TaskGroup() as tasks:
        if level.concurrency is not None:
            for _ in range(level.concurrency):
                tasks.create_task(worker())
            return run
        for turns, at_s in zip(supply, arrivals, strict=False):
            await asyncio.sleep(max(0.0, run.began_s + at_s - time.perf_counter()))
            if not goes_on():
                break
            tasks.create_task(talk(target, turns, run, on_trace))
    return run


async def talk(
    target: Target, turns: list[Question], run: Run, on_trace: Callable[[Run], None]
) -> None:
    """Ask the turns of a conversation one after the other; a failure ends it."""
    messages: list[dict[str, str]] = []
    for turn in turns:
        question = turn
        if len(turns) > 1:
            assert isinstance(turn.prompt, list)
            messages += [message for message in turn.prompt if isinstance(message, dict)]
            question = replace(turn, prompt=list(messages))
        trace = await target.ask(question)
        run.add(trace)
        on_trace(run)
        if trace.error is not None:
            return
        messages.append({"role": "assistant", "content": trace.text})


def poisson(rate: float, rng: np.random.Generator) -> Iterator[float]:
    """Yield the moments of a Poisson process, in seconds from its beginning.

    Args:
        rate: mean number of arrivals per second.
        rng: decides the moments.
    """
    at_s = 0.0
    while True:
        at_s += float(rng.exponential(1 / rate))
        yield at_s
