"""What tokenisation does to a language model: bits per byte reached on one corpus with one budget.

Corpus: the docstrings of the standard library, a document a module, and tinyshakespeare in
documents of about 8 kB; a twentieth of the documents, chosen by a hash of their text, is held
out. Every tokenizer learns from the rest. The model is the same but for its vocabulary
(preset `char`: 4 layers of width 128, tied embedding), and so are context (256 tokens) and batch
(1,024 tokens). Every run gets the same floating-point operations, counted as
`ModelConfig.flops_per_token` does: 6 for each parameter that multiplies, the output head
included, the lookup of embeddings not. A larger vocabulary therefore sees fewer tokens, though
mostly more text. `--minutes-each` turns into operations by timing one short run.

Bits per byte = nats summed over all held-out tokens / UTF-8 bytes of the held-out text / ln 2. It
compares tokenizers only where the text can be had back from the tokens: one that lower-cases or
drops white space has less to predict, and is marked.

    python -m benchmarks.tokenisation_study [--minutes-each 0.7] [--tflop-each N] [--seeds 0 1]
        [--only NAME ...] [--no-write]
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.rows import RESULTS, append_row
from benchmarks.tokenizer_corpus import num_bytes
from llmlab.data import Shards
from llmlab.data.config import PackConfig
from llmlab.data.named import find_named
from llmlab.data.packing import is_held_out, pack
from llmlab.data.stdlib import stdlib_docstrings
from llmlab.model import ModelConfig
from llmlab.pretrain import PretrainConfig, pretrain
from llmlab.tokenizers import Tokenizer
from llmlab.tokenizers.report.measures import CutText, Tally, byte_lens
from llmlab.track import read_metrics

PRESET = "char"
CONTEXT_LEN = 256
BATCH_TOKENS = 1024
HELD_OUT = 0.05
PLAY_CHARS = 8_000
PICTURE = RESULTS / "tokenisation_study.svg"

_CALIBRATION_TFLOP = 0.15


@dataclass(frozen=True)
class Variant:
    """One way to make tokens."""

    name: str
    vocab_size: int
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `Tokenizer.train`."""


VARIANTS = (
    Variant("bytes", 272),
    Variant("characters", 1_000, {"algorithm": "char"}),
    Variant("BPE 1k, gpt2", 1_024, {"split": "gpt2"}),
    Variant("BPE 4k, gpt2", 4_096, {"split": "gpt2"}),
    Variant("BPE 8k, gpt2", 8_192, {"split": "gpt2"}),
    Variant("BPE 16k, gpt2", 16_384, {"split": "gpt2"}),
    Variant("BPE 8k, qwen2", 8_192, {"split": "qwen2"}),
    Variant("BPE 8k, qwen2, 2 digits", 8_192, {"split": "qwen2", "digits": 2}),
    Variant("BPE 8k, qwen2, 3 digits", 8_192, {"split": "qwen2", "digits": 3}),
    Variant("WordPiece 8k", 8_192, {"algorithm": "wordpiece"}),
    Variant("Unigram 8k", 8_192, {"algorithm": "unigram"}),
)


def documents() -> list[str]:
    """Return the corpus."""
    modules: defaultdict[str, list[str]] = defaultdict(list)
    for docstring in stdlib_docstrings():
        modules[docstring.module].append(f"{docstring.signature}\n{docstring.text}\n")
    plays = find_named("tinyshakespeare").read_text(encoding="utf-8")
    texts = ["\n".join(parts) for parts in modules.values()]
    return texts + [plays[start : start + PLAY_CHARS] for start in range(0, len(plays), PLAY_CHARS)]


class Study:
    """The corpus on disk and the budget of every run.

    Args:
        folder: for the corpus, the shards and the runs.
        texts: the corpus.
    """

    def __init__(self, folder: Path, texts: list[str]) -> None:
        self._folder = folder
        self.held_out = [text for text in texts if is_held_out(text.encode(), HELD_OUT)]
        self.train = [text for text in texts if not is_held_out(text.encode(), HELD_OUT)]
        self._corpus = folder / "corpus"
        self._corpus.mkdir()
        for number, text in enumerate(texts):
            path = self._corpus / f"{number:05}.txt"
            path.write_text(text, encoding="utf-8", newline="")

    def tflop_in(self, minutes: float) -> float:
        """Return how many operations (10^12) this machine does in that time, in a short run.

        What a run spends before its first step and after its last is not counted.
        """
        shards, tokenizer = self._prepare(VARIANTS[4])
        self._pretrain("calibration", shards, _CALIBRATION_TFLOP, seed=0)
        rows = read_metrics(shards.parent / "run" / "metrics.jsonl")
        per_s = statistics.median(row["tok_per_s"] for row in rows if "tok_per_s" in row)
        return per_s * _shape(tokenizer).flops_per_token(CONTEXT_LEN) * 60 * minutes / 1e12

    def measure(self, variant: Variant, tflop: float, seeds: list[int]) -> dict[str, Any]:
        """Train a tokenizer, then a model with each seed."""
        shards, tokenizer = self._prepare(variant)
        runs = [self._pretrain(variant.name, shards, tflop, seed) for seed in seeds]
        text = Tally(tokenizer, byte_lens(tokenizer))
        text.add([CutText.of(document) for document in self.held_out])
        held_out = text.measures()
        return {
            "name": variant.name,
            "vocab_size": tokenizer.vocab_size,
            "bytes_per_token": round(held_out.bytes_per_token, 3),
            "tokens_per_word": round(held_out.tokens_per_word or math.nan, 3),
            "lossless": held_out.failed_documents == 0,
            "unknown_share": round(held_out.unknown_share, 6),
            "parameters": runs[0]["parameters"],
            "tokens_seen": runs[0]["tokens"],
            "epochs": round(runs[0]["tokens"] / len(Shards(shards).split("train")), 2),
            "seconds": [run["seconds"] for run in runs],
            "bits_per_byte": [run["bits_per_byte"] for run in runs],
        }

    def _prepare(self, variant: Variant) -> tuple[Path, Tokenizer]:
        place = self._folder / variant.name.replace(" ", "_").replace(",", "")
        tokenizer = Tokenizer.train(self.train, vocab_size=variant.vocab_size, **variant.options)
        tokenizer.save(place / "tokenizer")
        config = PackConfig(
            sources=(str(self._corpus),),
            tokenizer=place / "tokenizer",
            out=place / "shards",
            overwrite=True,
            val_fraction=HELD_OUT,
            num_threads=1,
        )
        pack(config)
        return place / "shards", tokenizer

    def _pretrain(self, name: str, shards: Path, tflop: float, seed: int) -> dict[str, Any]:
        shape = _shape(Tokenizer.load(Shards(shards).tokenizer))
        config = PretrainConfig(
            data=(str(shards),),
            out=shards.parent / "run",
            overwrite=True,
            preset=PRESET,
            context_len=CONTEXT_LEN,
            batch_tokens=BATCH_TOKENS,
            max_tokens=int(tflop * 1e12 / shape.flops_per_token(CONTEXT_LEN)),
            eval_every=0,
            sample_every=0,
            checkpoint_every=0,
            prompts=(),
            final_eval_tokens=len(Shards(shards).split("val")),
            compile="off",
            seed=seed,
        )
        began_s = time.perf_counter()
        result = pretrain(config)
        if result.status == "interrupted":
            raise SystemExit("interrupted; nothing is written")
        seconds = time.perf_counter() - began_s
        nats = (result.val_loss or math.nan) * result.val_tokens
        bits_per_byte = nats / num_bytes(self.held_out) / math.log(2)
        print(
            f"{name}, seed {seed}: {bits_per_byte:.4f} bits per byte, {seconds:.0f} s",
            file=sys.stderr,
        )
        return {
            "parameters": result.num_parameters,
            "tokens": result.tokens,
            "seconds": round(seconds, 1),
            "bits_per_byte": round(bits_per_byte, 4),
        }


def _shape(tokenizer: Tokenizer) -> ModelConfig:
    return ModelConfig.preset(
        PRESET, vocab_size=tokenizer.vocab_size, max_position_embeddings=CONTEXT_LEN
    )


def draw(row: dict[str, Any], path: Path) -> None:
    """Draw bits per byte against bytes per token, one point a tokenizer."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for found in row["variants"]:
        mean = statistics.mean(found["bits_per_byte"])
        spread = max(found["bits_per_byte"]) - mean
        axes.errorbar(
            found["bytes_per_token"],
            mean,
            yerr=spread,
            marker="o" if found["lossless"] else "x",
            color="#1f6feb" if found["lossless"] else "#9aa4af",
            capsize=3,
        )
        axes.annotate(
            found["name"],
            (found["bytes_per_token"], mean),
            xytext=(6, 4),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set_xlabel("bytes per token, held out")
    axes.set_ylabel("bits per byte, held out (lower is better)")
    axes.set_title(f"Same model, same {row['tflop_each']:.1f} TFLOP, different tokens")
    axes.margins(0.12)
    axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Run the study, append its row and draw its picture."""
    args = _arguments()
    chosen = [variant for variant in VARIANTS if not args.only or variant.name in args.only]
    with tempfile.TemporaryDirectory() as name:
        study = Study(Path(name), documents())
        tflop = args.tflop_each or study.tflop_in(args.minutes_each)
        row = {
            "preset": PRESET,
            "context_len": CONTEXT_LEN,
            "tflop_each": round(tflop, 3),
            "batch_tokens": BATCH_TOKENS,
            "seeds": args.seeds,
            "train_bytes": num_bytes(study.train),
            "held_out_bytes": num_bytes(study.held_out),
            "variants": [study.measure(variant, tflop, args.seeds) for variant in chosen],
        }
    print(json.dumps(row, indent=2))
    if not args.no_write:
        append_row("tokenisation_study", row)
        draw(row, PICTURE)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes-each", type=float, default=0.7, help="budget of one run")
    parser.add_argument("--tflop-each", type=float, help="the same in 10^12 operations")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", choices=[variant.name for variant in VARIANTS])
    parser.add_argument("--no-write", action="store_true", help="only print")
    return parser.parse_args()


if __name__ == "__main__":
    main()
