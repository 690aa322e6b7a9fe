"""Claim: int8 and int4 linear layers and attention over pages beside PyTorch's own operators.

What `llmlab bench kernels` measures, as one row of `benchmarks/results/kernels.jsonl`. Run it on a
machine with nothing else to do.

    python -m benchmarks.kernels [--device cuda] [--no-write]
"""

import sys

from benchmarks.rows import append_row
from llmlab.kernels.bench.measure import as_json
from llmlab.kernels.bench.run import as_line, device_of, run

ROUNDS = 40


def main(words: list[str]) -> None:
    """Measure, and write the row."""
    device = device_of("cuda" if "cuda" in words else "cpu")
    found = run(device, ROUNDS, on_row=lambda row: print(as_line(row), flush=True))
    print(found.summary())
    if "--no-write" not in words:
        values = {
            "num_threads": found.num_threads,
            "limits": as_json(found.limits),
            "rows": [as_json(row) for row in found.rows],
        }
        name = None if device.type == "cpu" else found.device
        print(append_row("kernels", values, device=name))


if __name__ == "__main__":
    main(sys.argv[1:])
