"""What `llmlab eval run` is told. Not here: the run (run.py); no torch."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Score a model folder or a URL on tasks, with error bars."""

    model: Path | None = None
    """Model folder; give this or `--base-url`."""
    base_url: str | None = None
    """OpenAI-style server such as http://127.0.0.1:8000/v1; give this or `--model`."""
    api_key_file: Path | None = None
    """File whose first line is the server's API key; the variable OPENAI_API_KEY when left out."""
    tasks: tuple[str, ...] = ("bits_per_byte", "choices_small", "short_answers")
    """Task names; one that takes an argument has it after a colon: bits_per_byte:notes.txt."""
    out: Path
    """Where the results folder shall appear."""
    limit: int | None = None
    """Examples a task at most, the first ones; all when unset."""
    seed: int = 0
    """Seed of the bootstrap and of tasks that draw their examples."""
    overwrite: bool = False
    """Replace an existing results folder."""
