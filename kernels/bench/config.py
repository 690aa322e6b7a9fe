"""What `llmlab bench kernels` takes."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class BenchKernelsConfig:
    """Time the operators beside PyTorch's own."""

    device: str = "cpu"
    """cpu or cuda."""
    rounds: int = 20
    """Times that each way is run, in turn with the others."""
    only: str = ""
    """Part of an operator's name: leave out all without it."""
    out: Path | None = None
    """A file to which a row of JSON is added for each operator and size."""
