"""Published rank files, from the folder of data that `LLMLAB_DATA` names."""

import os
from pathlib import Path

import pytest


def rank_file(name: str) -> Path:
    """Return `tokenizer_ranks/NAME` of the data folder, or skip the test."""
    path = Path(os.environ.get("LLMLAB_DATA") or ".") / "tokenizer_ranks" / name
    if not path.is_file():
        pytest.skip(f"tokenizer_ranks/{name} does not lie in LLMLAB_DATA")
    return path
