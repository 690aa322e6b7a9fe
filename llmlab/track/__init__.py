"""Following a run: metrics.jsonl for machines, a live line for people, trackers on request."""

from llmlab.track.metrics import MetricsLog, read_metrics
from llmlab.track.progress import OnProgress, Progress, silent
from llmlab.track.trackers import Tracker, opened_trackers

__all__ = [
    "MetricsLog",
    "OnProgress",
    "Progress",
    "Tracker",
    "opened_trackers",
    "read_metrics",
    "silent",
]
