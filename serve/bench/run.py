"""Everything `llmlab bench serve` does: find the servers, press them in turn, gather rows.

Not here: flags (config.py), what is shown (report.py).
"""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from llmlab.errors import ConfigError, ServerError
from llmlab.outputs import check_free
from llmlab.serve.bench.client import Target, connected, http_client
from llmlab.serve.bench.config import BenchServeConfig, Level
from llmlab.serve.bench.conversations import Conversations, plain_token_ids
from llmlab.serve.bench.load import Run, poisson, press
from llmlab.serve.bench.long_prompts import QUIET_EVENTS, Watched, watch
from llmlab.serve.bench.measures import LoadRow, LongPromptRow, Ratio, load_row, long_prompt_row
from llmlab.tokenizers import Tokenizer
from llmlab.track.progress import OnProgress, silent

_WARMUP, _MEASURED, _ARRIVALS = range(3)
"""What is drawn, as the last number of its seed."""


@dataclass(frozen=True)
class Server:
    """What was found out about a server."""

    label: str
    url: str
    model: str
    takes_ignore_eos: bool
    """Else answers may end before they have as many tokens as asked."""
    counts_tokens: bool
    """Else events are counted in place of output tokens, and prompts count nothing."""


@dataclass(frozen=True)
class Results:
    """What a run found."""

    config: BenchServeConfig
    servers: list[Server]
    rows: list[LoadRow] | list[LongPromptRow]
    """One for each load and server, all rounds together."""
    rounds: list[LoadRow] | list[LongPromptRow]
    """One for each load, server and round."""


def bench(config: BenchServeConfig, *, on_progress: OnProgress = silent) -> Results:
    """Measure the servers.

    Args:
        config: what to ask of whom.
        on_progress: is told how far it is.

    Raises:
        ServerError: a server is not there, does not know the model, or refuses a first request;
            or none of the measured requests was answered.
        ConfigError: the key cannot be read.
        OutputError: the folder for the results exists.
    """
    if config.out is not None:
        check_free(config.out, overwrite=config.overwrite)
    token_ids = None
    if config.tokenizer is not None:
        token_ids = plain_token_ids(Tokenizer.load(config.tokenizer))
    results = asyncio.run(_Bench(config, token_ids, on_progress).run())
    if not any(_num_good(row) for row in results.rows):
        errors = {error: None for row in results.rows for error in row.errors}
        raise ServerError(f"no request was answered: {'; '.join(errors) or 'none was sent'}")
    return results


class _Bench:
    """One run of everything."""

    def __init__(
        self, config: BenchServeConfig, token_ids: np.ndarray | None, on_progress: OnProgress
    ) -> None:
        self._config = config
        self._token_ids = token_ids
        self._on_progress = on_progress

    async def run(self) -> Results:
        config = self._config
        key = _api_key(config.api_key_file)
        async with http_client(key, config.timeout_s) as http:
            first = self._conversations(0, 0, _WARMUP).question(input_len=8, num_tokens=2)
            targets = [
                await connected(
                    http,
                    label=label,
                    base_url=url,
                    model=config.model,
                    question=first,
                    temperature=config.temperature,
                    timeout_s=config.timeout_s,
                )
                for label, url in zip(config.labels, config.base_url, strict=True)
            ]
            if config.mix == "long-prefill":
                rows, rounds = await self._long_prefill(targets)
            else:
                rows, rounds = await self._load(targets)
        servers = [
            Server(t.label, t.url, t.model, t.takes_ignore_eos, t.counts_tokens) for t in targets
        ]
        return Results(config, servers, rows, rounds)

    async def _load(self, targets: list[Target]) -> tuple[list[LoadRow], list[LoadRow]]:
        rows, rounds = [], []
        for place, level in enumerate(self._config.levels):
            runs: dict[str, list[Run]] = {target.label: [] for target in targets}
            for number in range(self._config.rounds):
                for target in targets:
                    run = await self._press(target, level, place, number)
                    runs[target.label].append(run)
                    rounds.append(load_row(target.label, level, [run], number))
            rows += with_ratios(
                [load_row(label, level, own, None) for label, own in runs.items()], rounds
            )
        return rows, rounds

    async def _press(self, target: Target, level: Level, place: int, number: int) -> Run:
        config = self._config
        limit = None if config.seconds else config.num_requests_at(level)

        def on_trace(run: Run) -> None:
            done = len(run.traces)
            self._tell(target, level, number, "requests", done, limit)

        warm = Level(concurrency=level.concurrency or max(1, config.warmup))
        if config.warmup:
            await press(
                target,
                warm,
                self._conversations(place, number, _WARMUP),
                num_requests=config.warmup,
                seconds=None,
                arrivals=iter(()),
                on_trace=lambda _: None,
            )
        rng = np.random.default_rng([config.seed, place, number, _ARRIVALS])
        return await press(
            target,
            level,
            self._conversations(place, number, _MEASURED),
            num_requests=limit,
            seconds=config.seconds,
            arrivals=poisson(level.rate or 1.0, rng),
            on_trace=on_trace,
        )

    async def _long_prefill(
        self, targets: list[Target]
    ) -> tuple[list[LongPromptRow], list[LongPromptRow]]:
        rows, rounds = [], []
        for place, level in enumerate(self._config.levels):
            seen: dict[str, list[Watched]] = {target.label: [] for target in targets}
            for number in range(self._config.rounds):
                for target in targets:
                    own = await self._watch(target, level, place, number)
                    seen[target.label] += own
                    rounds.append(long_prompt_row(target.label, level, own, number))
            rows += [long_prompt_row(label, level, own, None) for label, own in seen.items()]
        return rows, rounds

    async def _watch(self, target: Target, level: Level, place: int, number: int) -> list[Watched]:
        config = self._config
        conversations = self._conversations(place, number, _MEASURED)
        limit = config.num_requests_at(level)
        watched = []
        num_warm = min(config.warmup, 1)
        for done in range(1 - num_warm, limit + 1):
            streams = [
                conversations.question(input_len=config.input_len, num_tokens=config.answer_len)
                for _ in range(level.concurrency or 1)
            ]
            long = conversations.question(input_len=config.long_len, num_tokens=1)
            quiet = min(QUIET_EVENTS, config.answer_len // 4)
            watched.append(await watch(target, streams, long, quiet_events=quiet))
            self._tell(target, level, number, "long prompts", done, limit)
        return watched[num_warm:]

    def _conversations(self, load: int, number: int, purpose: int) -> Conversations:
        return Conversations(
            self._config, load=load, number=number, purpose=purpose, token_ids=self._token_ids
        )

    def _tell(
        self, target: Target, level: Level, number: int, what: str, done: int, limit: int | None
    ) -> None:
        values = {"server": target.label, "load": str(level)}
        if self._config.rounds > 1:
            values["round"] = f"{number + 1}/{self._config.rounds}"
        self._on_progress({**values, what: str(done) if limit is None else f"{done}/{limit}"})


def with_ratios(rows: Sequence[LoadRow], rounds: Sequence[LoadRow]) -> list[LoadRow]:
    """Put ratios into the rows of one load.

    Args:
        rows: all rounds together, one for each server; the last one is compared with.
        rounds: the rows of single rounds, of this load and others.
    """
    *others, last = rows
    load = last.concurrency, last.rate
    speed = {
        (row.label, row.round): row.output_tok_per_s
        for row in rounds
        if (row.concurrency, row.rate) == load
    }
    found = []
    for row in others:
        values = [
            own / speed[last.label, number]
            for (label, number), own in speed.items()
            if label == row.label and speed[last.label, number]
        ]
        found.append(replace(row, ratio=Ratio.of(values)) if values else row)
    return [*found, last]


def _num_good(row: LoadRow | LongPromptRow) -> int:
    return row.requests if isinstance(row, LoadRow) else row.long_prompts


def _api_key(path: Path | None) -> str | None:
    if path is None:
        return os.environ.get("OPENAI_API_KEY")
    try:
        return path.read_text(encoding="utf-8").split()[0]
    except (OSError, UnicodeDecodeError, IndexError) as error:
        raise ConfigError(f"api_key_file={path} has no key to read; check the path") from error
