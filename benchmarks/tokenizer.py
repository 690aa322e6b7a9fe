"""Claim: tokenizers trained and applied faster than in the libraries they are exact against.

Everything runs side by side, in turns, on the cores given; training in a fresh process each time.
Appends one row a part to results/tokenizer.jsonl. Run it on an idle machine.

    python -m benchmarks.tokenizer [--part train compile encode latency limits] [--cores 2]
        [--runs 5] [--limit-mb MB] [--no-write]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import tokenizer_encoding as encoding
from benchmarks.rows import append_row
from benchmarks.timing import spread
from benchmarks.tokenizer_corpus import num_bytes, shakespeare_texts, stdlib_texts
from benchmarks.tokenizer_training import LIBRARIES, SPLIT, VOCAB_SIZES, texts_for
from llmlab.tokenizers import Tokenizer

TRAINING_RUNS = 3

_FIRST_USE = """
import json, sys, time
from llmlab.tokenizers import Tokenizer
began_s = time.perf_counter()
texts = ["the cat sat on the mat " * 10_000] * 4
tokenizer = Tokenizer.train(texts, vocab_size=300, split="gpt2")
trained_s = time.perf_counter()
tokenizer.encode_batch_to_arrays(texts)
done_s = time.perf_counter()
print(json.dumps({"train_s": trained_s - began_s, "encode_s": done_s - trained_s}))
"""


def training(args: argparse.Namespace) -> dict[str, Any]:
    """Time every trainer in fresh processes, and compare what they learnt."""
    found: dict[str, Any] = {}
    for algorithm, libraries in LIBRARIES.items():
        with tempfile.TemporaryDirectory() as name:
            rows: dict[str, list[dict[str, Any]]] = {library: [] for library in libraries}
            for number in range(min(args.runs, TRAINING_RUNS)):
                for library in libraries if number % 2 == 0 else reversed(libraries):
                    out = Path(name) / f"{library}-{number}"
                    rows[library].append(_train_once(library, algorithm, out, args))
            texts = list(texts_for(algorithm, args.limit_mb))
            found[algorithm] = {
                "vocab_size": VOCAB_SIZES[algorithm],
                "bytes": num_bytes(texts),
                "documents": len(texts),
                **{library: _summary(values) for library, values in rows.items()},
            }
            if algorithm == "bpe":
                found[algorithm]["merges"] = _same_merges(Path(name))
    return found


def first_use(args: argparse.Namespace) -> dict[str, Any]:
    """Time the first training and encoding of a process, without and with compiled code on disk."""
    with tempfile.TemporaryDirectory() as name:
        environment = {**os.environ, "NUMBA_CACHE_DIR": name}
        cold, *warm = [_first_use(environment) for _ in range(1 + max(args.runs, 3))]
    return {
        "compiling": {key: round(value, 2) for key, value in cold.items()},
        "from_disk": {key: spread([row[key] for row in warm], 3) for key in cold},
    }


def encode(args: argparse.Namespace) -> dict[str, Any]:
    """Time corpora, and `data pack`."""
    corpora = {
        "stdlib": list(stdlib_texts(limit_mb=args.limit_mb)),
        "tinyshakespeare": shakespeare_texts(limit_mb=args.limit_mb),
    }
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        contestants = _contestants(Path(name), args)
        for corpus, texts in corpora.items():
            found[corpus] = {
                "bytes": num_bytes(texts),
                "documents": len(texts),
                "equal_documents": encoding.equal_documents(contestants, texts),
                "mb_per_s": encoding.corpus_speed(contestants, texts, args.runs),
            }
        pack = encoding.pack_speed(Path(name) / "tokenizer", corpora["stdlib"], args.runs)
    return {"corpora": found, "pack_mb_per_s": pack}


def latency(args: argparse.Namespace) -> dict[str, Any]:
    """Time single prompts cut from tinyshakespeare."""
    with tempfile.TemporaryDirectory() as name:
        contestants = _contestants(Path(name), args)
        return {"microseconds": encoding.latency(contestants, shakespeare_texts(), args.runs)}


def limits(args: argparse.Namespace) -> dict[str, Any]:
    """Time what every encoder does at least."""
    texts = list(stdlib_texts(limit_mb=args.limit_mb))
    return {"mb_per_s": encoding.limits(SPLIT, texts, args.runs)}


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "train": training,
    "compile": first_use,
    "encode": encode,
    "latency": latency,
    "limits": limits,
}


def main() -> None:
    """Measure the parts asked for and append a row each."""
    args = _arguments()
    cores = sorted(os.sched_getaffinity(0))[: args.cores]
    os.sched_setaffinity(0, cores)
    os.environ.update(RAYON_NUM_THREADS=f"{len(cores)}", TOKENIZERS_PARALLELISM="true")
    for part in args.part:
        row = {
            "part": part,
            "threads": len(cores),
            "limit_mb": args.limit_mb,
            "peers": {name: version(name) for name in ("tokenizers", "tiktoken", "sentencepiece")},
            **PARTS[part](args),
        }
        print(json.dumps(row, indent=2))
        if not args.no_write:
            append_row("tokenizer", row)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--cores", type=int, default=2, help="cores that everything may use")
    parser.add_argument("--runs", type=int, default=5, help="measurements of each thing")
    parser.add_argument("--limit-mb", type=float, help="stop reading a corpus after this much")
    parser.add_argument("--no-write", action="store_true", help="only print")
    return parser.parse_args()


def _contestants(folder: Path, args: argparse.Namespace) -> encoding.Contestants:
    """Train the vocabulary that all libraries encode with."""
    texts = stdlib_texts(limit_mb=args.limit_mb)
    tokenizer = Tokenizer.train(texts, vocab_size=VOCAB_SIZES["bpe"], split=SPLIT)
    tokenizer.save(folder / "tokenizer")
    return encoding.Contestants(folder / "tokenizer", args.cores)


def _train_once(
    library: str, algorithm: str, out: Path, args: argparse.Namespace
) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.tokenizer_training", library, algorithm, str(out)]
    limit = [] if args.limit_mb is None else ["--limit-mb", str(args.limit_mb)]
    return _run_json([*command, *limit], dict(os.environ))


def _first_use(environment: dict[str, str]) -> dict[str, float]:
    return _run_json([sys.executable, "-c", _FIRST_USE], environment)


def _run_json(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    root = Path(__file__).parents[1]
    done = subprocess.run(
        command, cwd=root, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "vocab_size": rows[0]["vocab_size"],
        "seconds": spread([row["seconds"] for row in rows], 3),
        "peak_mb": spread([row["peak_mb"] for row in rows], 1),
        "peak_with_imports_mb": spread([row["peak_with_imports_mb"] for row in rows], 1),
    }


def _same_merges(folder: Path) -> dict[str, int]:
    """Count the merges that are the same, and in the same place, in both libraries."""
    ours, theirs = (
        json.loads((folder / f"{library}-0" / "tokenizer.json").read_text(encoding="utf-8"))
        for library in ("llmlab", "tokenizers")
    )
    pairs = list(zip(ours["model"]["merges"], theirs["model"]["merges"], strict=False))
    return {"compared": len(pairs), "equal": sum(a == b for a, b in pairs)}


if __name__ == "__main__":
    main()
