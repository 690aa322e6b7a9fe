"""`llmlab quickstart`: every stage once, with live progress."""

import os
import sys

from llmlab.quickstart.config import QuickstartConfig
from llmlab.track import Progress


def run(config: QuickstartConfig) -> object:
    """Run the quickstart and return its result."""
    # Every model here is a local folder; libraries that could ask the hub must not.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from llmlab.quickstart.run import quickstart

    progress = Progress(sys.stderr)
    try:
        return quickstart(config, on_progress=progress)
    finally:
        progress.close()
