"""`python -m llmlab.kernels.bench` is `llmlab bench kernels` with PyTorch and Triton only."""

import argparse
import dataclasses
import sys

from llmlab.kernels.bench.config import BenchKernelsConfig
from llmlab.kernels.bench.run import bench, check


def main(words: list[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m llmlab.kernels.bench")
    for field in dataclasses.fields(BenchKernelsConfig):
        kind = int if field.name == "rounds" else str
        parser.add_argument(f"--{field.name}", type=kind, default=field.default)
    config = BenchKernelsConfig(**vars(parser.parse_args(words)))
    try:
        device = check(config)
    except ValueError as error:
        parser.error(str(error))
    found = bench(config, device, print)
    sys.stdout.write(found.summary() + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
