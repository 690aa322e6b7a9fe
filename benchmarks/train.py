"""Claim: pretraining on two cores is faster, smaller and better than a plain PyTorch loop.

`speed`: tokens a second at two shapes, beside plain_training.py on the same tokens and with the
same update rule (AdamW), in turns, each in a fresh process; the rate is the median over steps,
compilation and validation left out.
`memory`: peak resident memory of both processes with a vocabulary of 32k and a context of 1024.
`shakespeare`: held-out loss on tinyshakespeare (characters, its last tenth held out as in nanoGPT)
after 180 s of wall time, everything included, for several seeds.
Appends one row a part to results/train.jsonl. Run it on an idle machine.

    python -m benchmarks.train [--part speed memory shakespeare] [--seconds 40] [--no-write]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.rows import append_row
from benchmarks.timing import spread

ROOT = Path(__file__).parents[1]
ROUNDS = 3

SHAPES: dict[str, dict[str, int]] = {
    # nanoGPT's shape for a CPU.
    "char": {"layers": 4, "width": 128, "heads": 4, "kv_heads": 4, "ffn": 344, "context": 64,
             "batch": 12},
    "tiny": {"layers": 6, "width": 256, "heads": 4, "kv_heads": 2, "ffn": 768, "context": 256,
             "batch": 8},
}  # fmt: skip

QUIET = [
    *("--eval-every", "0", "--sample-every", "0", "--checkpoint-every", "0"),
    *("--eval-tokens", "1024", "--final-eval-tokens", "1024", "--sample-tokens", "1"),
]


def speed(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Compare tokens a second."""
    found = {}
    for preset, corpus in (("char", _characters), ("tiny", _stdlib_4k)):
        shards = corpus(folder)
        ours, theirs = [], []
        for number in range(ROUNDS):
            out = folder / f"{preset}-{number}"
            theirs.append(_plain(shards, SHAPES[preset], args.seconds)[0])
            _pretrain(shards, out, preset, SHAPES[preset], args.seconds, "--compile", "on",
                      "--optimizer", "adamw")  # fmt: skip
            ours.append(_median_rate(out))
        found[preset] = {
            **SHAPES[preset],
            "vocab": _vocab_size(shards),
            "parameters": theirs[0]["parameters"],
            "llmlab_tok_per_s": spread(ours, 0),
            "plain_tok_per_s": spread([row["tok_per_s"] for row in theirs], 0),
            "ratio": spread([a / b["tok_per_s"] for a, b in zip(ours, theirs, strict=True)], 2),
        }
    return found


def memory(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Compare peak resident memory."""
    shape = {**SHAPES["tiny"], "context": 1024, "batch": 8}
    shards = _stdlib_32k(folder)
    theirs = _plain(shards, shape, args.seconds)[1]
    ours = _pretrain(shards, folder / "memory", "tiny", shape, args.seconds)
    return {**shape, "vocab": _vocab_size(shards), "llmlab_mb": ours, "plain_mb": theirs,
            "ratio": round(ours / theirs, 3)}  # fmt: skip


def shakespeare(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train for 180 s with each seed and score the held-out tenth."""
    shards = _characters(folder)
    rows = []
    for seed in range(args.seeds):
        out = folder / f"shakespeare-{seed}"
        result = _llmlab("pretrain", "--data", str(shards), "--out", str(out), "--seed", str(seed),
                         "--max-seconds", "180", "--json", *args.recipe)  # fmt: skip
        rows.append(json.loads(result.splitlines()[-1]))
        print(json.dumps(rows[-1]), flush=True)
    losses = [row["val_loss"] for row in rows]
    return {
        "recipe": list(args.recipe),
        "parameters": rows[0]["num_parameters"],
        "val_loss": [round(loss, 4) for loss in losses],
        "mean": round(statistics.mean(losses), 4),
        "tokens": [row["tokens"] for row in rows],
        "seconds": [round(row["elapsed_s"], 1) for row in rows],
        "val_tokens": rows[0]["val_tokens"],
    }


PARTS = {"speed": speed, "memory": memory, "shakespeare": shakespeare}
RECIPE = ("--preset", "char", "--context-len", "256", "--batch-tokens", "4096")


def _pretrain(
    shards: Path, out: Path, preset: str, shape: dict[str, int], seconds: float, *flags: str
) -> float:
    """Run `llmlab pretrain` and return its peak memory in MB."""
    tokens = shape["context"] * shape["batch"]
    sizes = f"--context-len {shape['context']} --batch-tokens {tokens} --max-seconds {seconds}"
    command = [sys.executable, "-m", "llmlab", "pretrain", "--data", str(shards), "--out", str(out)]
    command += ["--preset", preset, *sizes.split(), *QUIET, *flags]
    return _measured(command)[1]


def _plain(shards: Path, shape: dict[str, int], seconds: float) -> tuple[dict[str, Any], float]:
    shape = {**shape, "vocab": _vocab_size(shards)}
    command = [sys.executable, "-m", "benchmarks.plain_training", str(shards / "train-00000.bin"),
               "--shape", json.dumps(shape), "--seconds", str(seconds)]  # fmt: skip
    text, peak_mb = _measured(command)
    return json.loads(text), peak_mb


def _measured(command: list[str]) -> tuple[str, float]:
    """Run a command and return its stdout and its peak memory in MB."""
    with tempfile.TemporaryFile("w+") as stdout:
        process = subprocess.Popen(command, cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE)
        assert process.stderr is not None
        errors = process.stderr.read().decode()
        process.stderr.close()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{errors}")
        stdout.seek(0)
        return stdout.read(), round(usage.ru_maxrss / 1024, 1)


def _median_rate(out: Path) -> float:
    rows = map(json.loads, (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    rates = [row["tok_per_s"] for row in rows if "tok_per_s" in row]
    return statistics.median(rates[len(rates) // 10 :])


def _characters(folder: Path) -> Path:
    return _packed(folder, "tinyshakespeare", "chars", "--algorithm", "char", "--vocab-size", "100")


def _stdlib_4k(folder: Path) -> Path:
    return _packed(folder, "stdlib", "stdlib-4k", "--vocab-size", "4096")


def _stdlib_32k(folder: Path) -> Path:
    return _packed(folder, "stdlib", "stdlib-32k", "--vocab-size", "32768")


def _packed(folder: Path, source: str, name: str, *flags: str) -> Path:
    tokenizer, shards = folder / name, folder / f"{name}-shards"
    if not shards.exists():
        _llmlab("tokenizer", "train", source, "--out", str(tokenizer), *flags)
        _llmlab("data", "pack", source, "--tokenizer", str(tokenizer), "--out", str(shards),
                "--val-fraction", "0.1")  # fmt: skip
    return shards


def _vocab_size(shards: Path) -> int:
    return json.loads((shards / "meta.json").read_text(encoding="utf-8"))["vocab_size"]


def _llmlab(*args: str) -> str:
    return _measured([sys.executable, "-m", "llmlab", *args])[0]


def main() -> None:
    """Measure the parts asked for and append a row each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=40.0, help="of each run but the 180 s")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--no-write", action="store_true", help="only print")
    args, recipe = parser.parse_known_args()
    args.recipe = recipe or RECIPE
    for part in args.part:
        with tempfile.TemporaryDirectory() as name:
            row = {"part": part, **PARTS[part](args, Path(name))}
        print(json.dumps(row, indent=2), flush=True)
        if not args.no_write:
            append_row("train", row)


if __name__ == "__main__":
    main()
