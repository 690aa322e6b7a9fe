"""`llmlab bench`: how fast this is here."""

from dataclasses import dataclass
from typing import Any

from llmlab.errors import ConfigError
from llmlab.kernels.bench.config import BenchKernelsConfig
from llmlab.kernels.bench.measure import as_json
from llmlab.kernels.bench.run import bench, check


@dataclass(frozen=True)
class Benched:
    """What `bench kernels` found."""

    device: str
    num_threads: int | None
    limits: dict[str, Any]
    """GB/s and TFLOP/s of the device in this run."""
    rows: list[dict[str, Any]]
    """One for each operator and size."""
    summary: str
    """The last line for people; the others were printed one by one."""

    def __str__(self) -> str:
        return self.summary


def kernels(config: BenchKernelsConfig) -> Benched:
    """Time the operators."""
    try:
        device = check(config)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    found = bench(config, device, print)
    return Benched(
        found.device,
        found.num_threads,
        as_json(found.limits),
        [as_json(row) for row in found.rows],
        found.summary(),
    )
