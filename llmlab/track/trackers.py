"""Where the rows of a run go besides metrics.jsonl: TensorBoard files, Weights & Biases, Trackio.

A tracker takes the same rows as metrics.jsonl. None is opened unless it was asked for by name, so
nothing leaves the machine otherwise. Each lives in a module of its own, imported when it is opened,
because its package is an optional extra.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from llmlab.errors import ConfigError, MissingExtraError, did_you_mean

TRACKERS = {
    "tensorboard": "llmlab.track.tensorboard:TensorBoardTracker",
    "wandb": "llmlab.track.hosted:WandbTracker",
    "trackio": "llmlab.track.hosted:TrackioTracker",
}
"""Name to `module:class`; each is called with a folder, a run id and the run's settings."""


class Tracker(Protocol):
    """A place that takes rows of numbers; `MetricsLog` is the one that is always there."""

    def write(self, row: Mapping[str, Any]) -> None:
        """Take one row; the key `step` says where it belongs."""
        ...

    def close(self) -> None:
        """Hand over what was held back."""
        ...


def check_installed(names: Iterable[str]) -> None:
    """Refuse trackers whose package is missing, before anything is begun.

    Raises:
        ConfigError: no such tracker.
        MissingExtraError: its package, which has the tracker's name, is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"no tracker {name!r}{did_you_mean(name, TRACKERS)}")
        if find_spec(name) is None:
            raise MissingExtraError(name, name)


@contextmanager
def opened_trackers(
    names: Iterable[str], *, folder: Path, run_id: str, settings: Mapping[str, Any]
) -> Iterator[tuple[Tracker, ...]]:
    """Yield the trackers of those names, and close them at the end.

    Args:
        names: keys of `TRACKERS`; usually none.
        folder: of the run; files of trackers go below it, and its name is the run's.
        run_id: the same when a run is resumed, another for every new run.
        settings: what the run was started with, as plain values.

    Raises:
        ConfigError: no such tracker, or it cannot be reached as it is set up.
        MissingExtraError: its package is not installed.
    """
    with ExitStack() as stack:
        trackers = []
        for name in names:
            check_installed([name])
            tracker = _class(name)(folder, run_id, settings)
            stack.callback(tracker.close)
            trackers.append(tracker)
        yield tuple(trackers)


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Return what of a row can be drawn over steps: its numbers, without the step itself."""
    return {
        key: float(value)
        for key, value in row.items()
        if key != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }


def _class(name: str) -> Any:
    module, _, attribute = TRACKERS[name].partition(":")
    return getattr(import_module(module), attribute)
