"""From traces to rows of numbers.

Rates are of complete answers only, over the time from the first request to the end of the last.
An inter-token latency is the time between two events with text: what a reader of the stream sees.
A server that puts several tokens into one event has fewer and longer ones, so `tokens_per_event`
stands beside them, and `tpot_ms`, the time per token after the first, does not depend on it.
"""

import re
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from llmlab.serve.bench.config import Level
from llmlab.serve.bench.load import Run
from llmlab.serve.bench.long_prompts import Watched


@dataclass(frozen=True)
class Latency:
    """Milliseconds of many requests or tokens; percentiles are interpolated, as numpy's."""

    mean: float
    p50: float
    p90: float
    p99: float
    count: int

    @classmethod
    def of(cls, seconds: Iterable[float | None]) -> "Latency | None":
        """Return the spread of what is not None; None when there is nothing."""
        ms = 1e3 * np.array([value for value in seconds if value is not None])
        if not ms.size:
            return None
        p50, p90, p99 = np.percentile(ms, [50, 90, 99])
        return cls(float(ms.mean()), float(p50), float(p90), float(p99), ms.size)


@dataclass(frozen=True)
class Ratio:
    """One server's output tokens per second over another's, both of the same round."""

    median: float
    p20: float
    p80: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Ratio":
        """Return the spread of one value a round."""
        p20, p80 = np.percentile(values, [20, 80])
        return cls(statistics.median(values), float(p20), float(p80), len(values))


@dataclass(frozen=True, kw_only=True)
class LoadRow:
    """What one server did under one load."""

    label: str
    concurrency: int | None
    rate: float | None
    """Requests per second that arrived; None for a fixed concurrency."""
    round: int | None
    """Number of the round, from 0; None for all rounds together."""
    seconds: float
    requests: int
    """Complete answers."""
    failed: int
    errors: dict[str, int]
    """What went wrong, and how often."""
    prompt_tokens: int
    cached_tokens: int
    """Of the prompt tokens, those that the server had in its prefix cache, where it tells."""
    output_tokens: int
    asked_tokens: int
    """What output_tokens would be if no answer had ended by itself."""
    tokens_per_event: float | None
    output_tok_per_s: float
    total_tok_per_s: float
    """Prompt and output."""
    requests_per_s: float
    ttft_ms: Latency | None
    itl_ms: Latency | None
    tpot_ms: Latency | None
    e2e_ms: Latency | None
    ratio: Ratio | None = None
    """Against the server named last, where there are several."""


def load_row(label: str, level: Level, runs: Sequence[Run], number: int | None) -> LoadRow:
    """Return the numbers of one or more rounds.

    Args:
        label: the server's name.
        level: its load.
        runs: one for each round; their times are added, their latencies pooled.
        number: of the round, None for several.
    """
    traces = [trace for run in runs for trace in run.traces]
    done = [trace for trace in traces if trace.error is None]
    errors = _counted(trace.error for trace in traces)
    seconds = sum(run.seconds for run in runs)
    num_prompt = sum(trace.num_prompt for trace in done)
    num_output = sum(trace.num_output for trace in done)
    num_events = sum(len(trace.chunk_s) for trace in done)
    return LoadRow(
        label=label,
        concurrency=level.concurrency,
        rate=level.rate,
        round=number,
        seconds=seconds,
        requests=len(done),
        failed=len(traces) - len(done),
        errors=errors,
        prompt_tokens=num_prompt,
        cached_tokens=sum(trace.num_cached for trace in done),
        output_tokens=num_output,
        asked_tokens=sum(trace.num_asked for trace in done),
        tokens_per_event=num_output / num_events if num_events else None,
        output_tok_per_s=_per_s(num_output, seconds),
        total_tok_per_s=_per_s(num_prompt + num_output, seconds),
        requests_per_s=_per_s(len(done), seconds),
        ttft_ms=Latency.of(trace.ttft_s for trace in done),
        itl_ms=Latency.of(gap for trace in done for gap in trace.itl_s),
        tpot_ms=Latency.of(trace.tpot_s for trace in done),
        e2e_ms=Latency.of(trace.e2e_s for trace in done),
    )


@dataclass(frozen=True, kw_only=True)
class LongPromptRow:
    """What long prompts did to the streams of one server."""

    label: str
    concurrency: int
    """Streams."""
    round: int | None
    """Number of the round, from 0; None for all rounds together."""
    long_prompts: int
    """Those that were read while all streams ran."""
    failed: int
    errors: dict[str, int]
    """Why others were not, and how often."""
    prompt_tokens: float | None
    """Of a long prompt, as the server counts them."""
    idle_itl_ms: Latency | None
    """Between events of a stream before the long prompt came."""
    busy_itl_ms: Latency | None
    """The same while it was read."""
    p99_ratio: float | None
    """How many times longer the worst hundredth is meanwhile."""
    ttft_ms: Latency | None
    """Of the long prompts."""


def long_prompt_row(
    label: str, level: Level, watched: Sequence[Watched], number: int | None
) -> LongPromptRow:
    """Return the numbers of what was seen around long prompts, in one or more rounds."""
    good = [seen for seen in watched if seen.error is None]
    errors = _counted(seen.error for seen in watched)
    traces = [seen.long for seen in good if seen.long is not None]
    idle = Latency.of(gap for seen in good for gap in seen.idle_s)
    busy = Latency.of(gap for seen in good for gap in seen.busy_s)
    return LongPromptRow(
        label=label,
        concurrency=level.concurrency or 0,
        round=number,
        long_prompts=len(good),
        failed=len(watched) - len(good),
        errors=errors,
        prompt_tokens=statistics.fmean(t.num_prompt for t in traces) if traces else None,
        idle_itl_ms=idle,
        busy_itl_ms=busy,
        p99_ratio=busy.p99 / idle.p99 if idle and busy else None,
        ttft_ms=Latency.of(trace.ttft_s for trace in traces),
    )


def _counted(errors: Iterable[str | None]) -> dict[str, int]:
    """Count errors, commonest first; those that differ in a number only under the first's name."""
    names: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for error in errors:
        if error is not None:
            counts[names.setdefault(re.sub(r"\d+", "0", error), error)] += 1
    return dict(counts.most_common())


def _per_s(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0
