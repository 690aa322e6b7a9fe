"""Following a run: metrics.jsonl for machines, a live line for people."""

from llmlab.track.metrics import MetricsLog, read_metrics
from llmlab.track.progress import OnProgress, Progress, silent

__all__ = ["MetricsLog", "OnProgress", "Progress", "read_metrics", "silent"]
