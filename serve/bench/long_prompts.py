"""What a long prompt does to running streams: their pace before it came, and while it is read.

For each long prompt some streams are started anew, watched alone for a while, then until the long
prompt has its first token. They are then cut. Not here: statistics (measures.py).
"""

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from llmlab.serve.bench.client import Question, Target
from llmlab.serve.bench.traces import Trace

QUIET_EVENTS = 64
"""Events of each stream that are watched before the long prompt comes."""


@dataclass
class Watched:
    """What was seen around one long prompt."""

    idle_s: list[float] = field(default_factory=list)
    """Seconds between events of one stream, before."""
    busy_s: list[float] = field(default_factory=list)
    """The same, where they touch the time from sending the long prompt to its first token."""
    long: Trace | None = None
    error: str | None = None
    """Why the rest is not usable."""


async def watch(
    target: Target, questions: list[Question], long: Question, *, quiet_events: int = QUIET_EVENTS
) -> Watched:
    """Hold streams up by one long prompt.

    Args:
        target: the server.
        questions: one for each stream, with answers long enough to go on past the long prompt.
        long: the long prompt.
        quiet_events: events of each stream to watch before.
    """
    moments: list[list[float]] = [[] for _ in questions]
    news = asyncio.Event()
    tasks = [
        asyncio.create_task(target.ask(question, _heard(own, news)))
        for question, own in zip(questions, moments, strict=True)
    ]
    for task in tasks:
        task.add_done_callback(lambda _: news.set())

    async def all_have(num_events: list[int]) -> str | None:
        while any(len(own) < num for own, num in zip(moments, num_events, strict=True)):
            if ended := next((task for task in tasks if task.done()), None):
                return _why(ended.result())
            news.clear()
            await news.wait()
        return None

    watched = Watched()
    try:
        # The first events come while other streams' prompts are read, hence one more than watched.
        watched.error = await all_have([quiet_events + 2] * len(questions))
        if watched.error is None:
            watched.long = await target.ask(long)
            watched.error = watched.long.error or await all_have([len(own) + 1 for own in moments])
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if watched.error is None and watched.long is not None:
        divide(moments, watched.long, watched)
    return watched


def divide(moments: list[list[float]], long: Trace, watched: Watched) -> None:
    """Divide the gaps of the streams by when they were."""
    began_s = max(own[0] for own in moments)  # all prompts are read
    ended_s = long.chunk_s[0]
    for own in moments:
        for before_s, after_s in itertools.pairwise(own):
            if before_s >= began_s and after_s <= long.sent_s:
                watched.idle_s.append(after_s - before_s)
            elif before_s < ended_s and after_s > long.sent_s:
                watched.busy_s.append(after_s - before_s)


def _heard(own: list[float], news: asyncio.Event) -> Callable[[float], None]:
    def on_chunk(moment_s: float) -> None:
        own.append(moment_s)
        news.set()

    return on_chunk


def _why(trace: Trace) -> str:
    return trace.error or (
        f"a stream ended after {trace.num_output} tokens, before the long prompt was read; raise "
        "--output-len"
    )
