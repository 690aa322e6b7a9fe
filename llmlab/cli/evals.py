"""`llmlab eval run`: show the progress, print the numbers, name the results folder."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmlab.errors import EvalError
from llmlab.evals.config import RunConfig
from llmlab.evals.run import evaluate
from llmlab.track import Progress


@dataclass(frozen=True)
class Evaluated:
    """What `eval run` found; the examples are in the folder."""

    model: str
    results: dict[str, dict[str, Any]]
    """Task to its numbers, under lm-eval's keys."""
    text: str
    """The numbers for people, and the folder on the last line."""
    out: Path

    def __str__(self) -> str:
        return self.text


def run(config: RunConfig) -> Evaluated:
    """Score a model folder or a URL on tasks."""
    progress = Progress(sys.stderr, "eval")
    try:
        results = evaluate(
            model=config.model,
            base_url=config.base_url,
            api_key=_api_key(config.api_key_file),
            tasks=config.tasks,
            out=config.out,
            limit=config.limit,
            seed=config.seed,
            overwrite=config.overwrite,
            on_progress=progress,
        )
    finally:
        progress.close()
    return Evaluated(results.model, results.to_dict()["results"], str(results), results.out)


def _api_key(path: Path | None) -> str | None:
    if path is None:
        return os.environ.get("OPENAI_API_KEY")
    try:
        return path.read_text(encoding="utf-8").splitlines()[0].strip()
    except (OSError, UnicodeDecodeError, IndexError) as error:
        raise EvalError(f"api_key_file={path} cannot be read: {error}; check the path") from error
