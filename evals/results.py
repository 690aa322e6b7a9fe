"""What a run found: one TaskResult a task, with every example, in lm-eval's JSON shape.

Not here: computing it (scoring.py), files (report.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmlab import __version__
from llmlab.evals.stats import Estimate

HIGHER_IS_BETTER = {
    "acc": True,
    "acc_norm": True,
    "bits_per_byte": False,
    "byte_perplexity": False,
    "match": True,
}
"""Every metric, and which way is better."""


@dataclass(frozen=True)
class Sample:
    """One example and what came of it: a line of samples.jsonl."""

    task: str
    id: str
    input: str
    """What the model was given."""
    target: str
    """What is right; empty for a text."""
    response: str
    """What the model chose or wrote; empty for a text."""
    scores: Mapping[str, Any]
    """Metrics of this example and the numbers behind them; empty when it failed."""
    doc_hash: str
    """SHA-256 of the example."""
    prompt_hash: str
    """SHA-256 of the input."""
    target_hash: str
    """SHA-256 of the target."""
    error: str | None = None
    """Why it could not be scored."""


@dataclass(frozen=True)
class TaskResult:
    """What one task found."""

    task: str
    version: int
    fingerprint: str
    description: str
    metrics: Mapping[str, Estimate]
    """Empty when no example could be scored."""
    samples: Sequence[Sample]
    wall_s: float

    @property
    def num_failed(self) -> int:
        """Examples that could not be scored."""
        return sum(sample.error is not None for sample in self.samples)

    @property
    def first_error(self) -> str | None:
        """Why the first failed example failed."""
        return next((sample.error for sample in self.samples if sample.error), None)


@dataclass(frozen=True)
class Results:
    """What a run found; `results["choices_small"]["acc"].value` is a number."""

    model: str
    model_fingerprint: str
    tasks: Sequence[TaskResult]
    config: Mapping[str, Any]
    """What the run was told."""
    out: Path

    def __getitem__(self, task: str) -> Mapping[str, Estimate]:
        """Return the metrics of a task."""
        return next(result.metrics for result in self.tasks if result.task == task)

    def rows(self) -> list[tuple[str, str, Estimate]]:
        """Return (task, metric, estimate) of every number."""
        return [
            (result.task, name, number)
            for result in self.tasks
            for name, number in result.metrics.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return results.json: lm-eval's keys, and the intervals it does not have."""
        return {
            "results": {result.task: _flat(result) for result in self.tasks},
            "versions": {result.task: result.version for result in self.tasks},
            "n-samples": {
                result.task: {
                    "original": len(result.samples),
                    "effective": len(result.samples) - result.num_failed,
                }
                for result in self.tasks
            },
            "higher_is_better": {
                result.task: {name: HIGHER_IS_BETTER[name] for name in result.metrics}
                for result in self.tasks
            },
            "task_hashes": {result.task: result.fingerprint for result in self.tasks},
            "config": dict(self.config),
            "model_name": self.model,
            "model_fingerprint": self.model_fingerprint,
            "llmlab_version": __version__,
        }

    def __str__(self) -> str:
        lines = [
            f"{task:<20}  {name:<15}  {format_estimate(number)}"
            for task, name, number in self.rows()
        ]
        lines += [
            f"{result.task}: {result.num_failed} of {len(result.samples)} examples failed; "
            f"the first: {result.first_error}"
            for result in self.tasks
            if result.num_failed
        ]
        return "\n".join([*lines, str(self.out)])


def format_estimate(number: Estimate) -> str:
    """Return `0.5333 [0.4000, 0.6500]  n=60`."""
    interval = "" if number.low is None else f" [{number.low:.4f}, {number.high:.4f}]"
    return f"{number.value:.4f}{interval}  n={number.num_examples}"


def _flat(result: TaskResult) -> dict[str, Any]:
    flat: dict[str, Any] = {"alias": result.task}
    for name, number in result.metrics.items():
        flat[f"{name},none"] = number.value
        flat[f"{name}_stderr,none"] = "N/A" if number.stderr is None else number.stderr
        flat[f"{name}_ci95,none"] = None if number.low is None else [number.low, number.high]
    return flat | {"failed": result.num_failed, "wall_s": round(result.wall_s, 3)}
