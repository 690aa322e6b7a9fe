"""What a reader of the curves should notice: how the run ended, spikes, and what to change.

Each finding is a sentence with its numbers. Spikes are found during the run (llmlab/training); here
they are only read.
"""

import statistics
from collections.abc import Iterator

from llmlab.pretrain.report.curves import points, smoothed
from llmlab.pretrain.report.record import RunRecord

_MANY_EPOCHS = 4
"""Repeats of the text after which new text is worth clearly more (arXiv:2305.16264)."""

_RISE = 1.01
"""Validation above its best by this factor counts as risen."""

_SLOWDOWN = 0.8
"""Speed at the end below this share of the start's counts as slower."""

_STILL_FALLING = 0.02
"""Nats a token the last tenth of a run may gain before more training is the first advice."""


def findings(run: RunRecord) -> list[str]:
    """Return the sentences, the most pressing first."""
    return [*_end(run), *_spikes(run), *_data(run), *_validation(run), *_speed(run)]


def spike_steps(run: RunRecord) -> list[int]:
    """Return the steps at which the count of spikes rose."""
    counts = [(row["step"], row.get("spikes", 0)) for row in run.steps]
    before = [0, *(count for _, count in counts)]
    return [step for (step, count), last in zip(counts, before, strict=False) if count > last]


def is_still_falling(run: RunRecord) -> bool:
    """Whether the smoothed loss still fell in the last tenth of a run, where the rate is lowest."""
    losses = smoothed(points(run.steps, "loss"))
    tenth = len(losses) // 10
    return tenth >= 5 and losses[-tenth][1] - losses[-1][1] > _STILL_FALLING


def _end(run: RunRecord) -> Iterator[str]:
    at = f"step {run.last_step.get('step', 0):,}"
    saved = f"the last checkpoint is that of step {run.checkpoints[-1]:,}" if run.checkpoints else (
        "there is no checkpoint"
    )  # fmt: skip
    if run.status == "failed":
        reason = (run.ended or {}).get("error", "")
        yield f"The run failed after {at}; {saved}. {reason}"
    elif run.status == "interrupted":
        yield f"The run was interrupted after {at}; {saved}. The numbers below are those so far"
    elif run.status == "unfinished":
        yield f"The run has not ended: it still goes on, or was killed after {at}; {saved}"
    if len(run.starts) > 1:
        times = len(run.starts) - 1
        often = "once" if times == 1 else f"{times} times, last"
        yield f"It was resumed {often} at {run.starts[-1].get('time', 'an unknown time')}"


def _spikes(run: RunRecord) -> Iterator[str]:
    if steps := spike_steps(run):
        shown = ", ".join(f"{step:,}" for step in steps[:8]) + (", …" if len(steps) > 8 else "")
        times = "1 spike" if len(steps) == 1 else f"{len(steps)} spikes"
        yield (
            f"{times} of the loss or the gradient, at step {shown}; a lower learning_rate or a "
            "longer warmup_steps makes them rarer, skip_spikes leaves their updates out"
        )


def _data(run: RunRecord) -> Iterator[str]:
    tokens, held = run.last_step.get("tokens", 0), run.facts.get("train_tokens", 0)
    if held and tokens > _MANY_EPOCHS * held:
        yield (
            f"The run saw its text {tokens / held:.1f} times; beyond {_MANY_EPOCHS} times more "
            "text is worth more than more steps"
        )
    if run.facts.get("val_tokens") == 0:
        yield "The data holds out no documents, so nothing says how well the model generalises"


def _validation(run: RunRecord) -> Iterator[str]:
    losses = points([row for row in run.validations if not row.get("final")], "val_loss")
    if len(losses) >= 3:
        step, best = min(losses, key=lambda point: point[1])
        if losses[-1][1] > best * _RISE:
            yield (
                f"Held-out loss was lowest at step {step:,.0f} ({best:.4f}) and is "
                f"{losses[-1][1]:.4f} at the end: the model learns its text by heart. More text, a "
                "smaller model, or fewer steps"
            )
    if run.status == "finished" and is_still_falling(run):
        yield "The loss still falls at the end: a longer run is the first thing to try"


def _speed(run: RunRecord) -> Iterator[str]:
    rates = [rate for _, rate in points(run.steps, "tok_per_s")]
    quarter = len(rates) // 4
    if quarter < 10:
        return
    first = statistics.median(rates[quarter : 2 * quarter])
    last = statistics.median(rates[-quarter:])
    if last < _SLOWDOWN * first:
        yield (
            f"Speed fell from {first:,.0f} to {last:,.0f} tokens per second; something else used "
            "the machine, or it was too hot"
        )
