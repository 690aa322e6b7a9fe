"""What happened so far: seconds per stage, samples, checks, answers; the report is made of it."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from llmlab.track import OnProgress


@dataclass
class Stage:
    """One stage: its name, how long it took and what came out, in words."""

    name: str
    seconds: float = 0.0
    summary: str = ""


@dataclass(frozen=True, kw_only=True)
class Quote:
    """A sentence that supports an answer, and where it stands."""

    quote: str
    place: str


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One question answered from documents."""

    question: str
    text: str
    citations: tuple[Quote, ...]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One metric of one task: (value, low, high) per model, None where it was not measured."""

    task: str
    metric: str
    count: int
    cells: tuple[tuple[float, float, float] | None, ...]


@dataclass
class Journal:
    """The record of one quickstart run; `show` takes its progress."""

    show: OnProgress
    bits_per_byte: float = math.nan
    stages: list[Stage] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    samples: list[tuple[int, list[tuple[str, str]]]] = field(default_factory=list)
    checks: list[tuple[str, str]] = field(default_factory=list)
    served: list[tuple[str, str, str]] = field(default_factory=list)
    answers: list[Answered] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Time one stage; the block sets the summary."""
        self.show({"note": f"[{len(self.stages) + 1}] {name}"})
        stage = Stage(name)
        started = time.perf_counter()
        yield stage
        stage.seconds = time.perf_counter() - started
        self.stages.append(stage)
        self.show({"note": f"    {stage.summary} ({stage.seconds:.1f} s)"})

    def skip(self, reason: str) -> None:
        """Say in one line what is left out and how to get it."""
        self.missing.append(reason)
        self.show({"note": f"left out: {reason}"})

    @property
    def total_s(self) -> float:
        """Seconds of all stages together."""
        return sum(stage.seconds for stage in self.stages)
