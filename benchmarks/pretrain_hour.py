"""Claim: a model of ten million parameters learns real text in an hour on a laptop.

Trains a tokenizer with 8,192 tokens and a model of depth 5 (9 M parameters) for an hour, on files
drawn at random from the Python sources of the packages installed here, or from the folders named.
The report's figures and the last samples are kept as a row; the weights stay in the folder.

    python -m benchmarks.pretrain_hour [--minutes 60] [--folder runs/pretrain_hour] [--mb 60]
        [--no-write] [SOURCE ...]

`--mb` is how much text is drawn. Stopped by Ctrl-C and started again it goes on.
"""

import argparse
import sys
import sysconfig
from pathlib import Path
from typing import Any

from benchmarks.drawn_files import draw_files
from benchmarks.rows import append_row
from llmlab.data import PackConfig, Shards, iter_documents, pack
from llmlab.pretrain import PretrainConfig, pretrain
from llmlab.pretrain.report.card import make_card
from llmlab.pretrain.report.comparison import as_row
from llmlab.pretrain.report.record import read_run
from llmlab.tokenizers import Tokenizer
from llmlab.track import Progress

DEPTH = 5
VOCAB_SIZE = 8192
CONTEXT_LEN = 512
PROMPTS = ("def read", "class ", "import ", '    """Return the ')


def main() -> None:
    """Train, report, and append one row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("sources", nargs="*", default=[sysconfig.get_paths()["purelib"]])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--mb", type=float, default=60.0)
    parser.add_argument("--folder", type=Path, default=Path("runs/pretrain_hour"))
    parser.add_argument("--no-write", action="store_true", help="print the row only")
    words = parser.parse_args()
    progress = Progress(sys.stderr)
    shards = packed(words.sources, words.folder, words.mb, progress)
    config = settings(shards, words.folder / "run", words.minutes * 60)
    result = pretrain(config, on_progress=progress)
    progress.close()
    if result.status == "interrupted":
        sys.exit("interrupted; go on with the same command")
    row = {
        "minutes": words.minutes,
        "sources": [Path(source).name for source in words.sources],
        "mb": words.mb,
        "overlap": Shards(shards).meta["overlap"],
        **figures(config.out),
    }
    print(row if words.no_write else append_row("pretrain_hour", row), result.report)


def packed(sources: list[str], folder: Path, mb: float, progress: Progress) -> Path:
    """Return the shards of the sources, made at the first call."""
    shards = folder / "shards"
    if not shards.exists():
        files = [str(path) for path in draw_files(sources, mb * 1e6)]
        texts = (document.text for document in iter_documents(files, on_progress=progress))
        Tokenizer.train(texts, vocab_size=VOCAB_SIZE, on_progress=progress).save(
            folder / "tokenizer"
        )
        pack(PackConfig(sources=tuple(files), tokenizer=folder / "tokenizer", out=shards), progress)
    return shards


def settings(shards: Path, out: Path, seconds: float) -> PretrainConfig:
    """Return the settings of the run; it goes on where it was stopped."""
    return PretrainConfig(
        data=(str(shards),),
        out=out,
        depth=DEPTH,
        context_len=CONTEXT_LEN,
        max_seconds=seconds,
        prompts=PROMPTS,
        eval_every=250,
        sample_every=1000,
        checkpoint_every=250,
        resume=any(out.glob("checkpoint-*")),
    )


def figures(run: Path) -> dict[str, Any]:
    """Return what the report says, as plain values: figures, curve, last samples."""
    record = read_run(run)
    card = make_card(record)
    _, samples = card.samples[-1]
    every = max(1, len(record.validations) // 20)
    return {
        **{key: value for key, value in as_row(record).items() if key not in ("run", "status")},
        "settings": {k: v for k, v in record.settings.items() if k not in ("data", "out")},
        "facts": dict(card.facts),
        "findings": card.findings,
        "held_out": [
            {key: row[key] for key in ("step", "val_loss", "bits_per_byte") if key in row}
            for row in [*record.validations[::every], record.final]
        ],
        "samples": [sample["prompt"] + sample["text"] for sample in samples],
    }


if __name__ == "__main__":
    main()
