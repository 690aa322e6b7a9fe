"""Claim: a law fitted to small runs predicts the loss of a larger one.

A ladder of five sizes and three budgets of tokens, as `llmlab pretrain sweep` trains it: characters
of files drawn from the packages installed here, two layers of growing width, context 64, 4096
tokens a step, each run with the learning rate that follows its width and a schedule of its own.
L = E + A/N^alpha + B/D^beta is fitted to their held-out losses, N without the table of the
vocabulary. A model 1.8 times as large as the largest, on twice its tokens, is trained afterwards
and compared with what the law says of it. The ladder takes half of the 30 CPU-minutes it may.

Where the ladder stands matters: the law knows nothing of a model that learns a new trick midway.
Four ladders with a context of 256 were 10 to 11 % too high: BPE at depths 1 to 4, characters at two
to four layers, two layers alone, two layers on other text. There the loss falls faster between one
and eight million tokens, presumably as the models learn to copy from further back; that was not
looked into. With a context of 64, or one layer, it falls evenly.

    python -m benchmarks.scaling_study [--scale 1.0] [--folder runs/scaling_study] [--no-write]

`--scale` multiplies every budget. Stopped and started again it goes on. Besides the row it writes
results/scaling_loss.svg and results/scaling_plane.svg.
"""

import argparse
import dataclasses
import json
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.drawn_files import draw_files
from benchmarks.rows import RESULTS, append_row
from llmlab.data import PackConfig, Shards, iter_documents, pack
from llmlab.model import ModelConfig
from llmlab.pretrain.report.record import RunRecord, read_run
from llmlab.pretrain.sweep.config import SweepConfig
from llmlab.pretrain.sweep.run import sweep
from llmlab.pretrain.sweep.scaling import Ladder
from llmlab.tokenizers import Tokenizer
from llmlab.track import Progress

LADDER = ((2, 64), (2, 96), (2, 128), (2, 160), (2, 192))
"""Layers and width; heads are 32 wide."""

TOKENS = (1_000_000, 2_000_000, 4_000_000)
HELD_OUT, HELD_OUT_TOKENS = (2, 256), 8_000_000
NUM_BYTES = 120e6
MOST_CHARACTERS = 256
CONTEXT_LEN = 64


@dataclass(frozen=True)
class Budget:
    """Tokens, scaled and rounded to whole windows."""

    scale: float

    def __call__(self, tokens: int) -> int:
        """Return the budget that takes the place of `tokens`."""
        return max(1, round(tokens * self.scale / CONTEXT_LEN)) * CONTEXT_LEN


def main() -> None:
    """Train, fit, predict, and append one row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, default=Path("runs/scaling_study"))
    parser.add_argument("--no-write", action="store_true", help="print the row only")
    words = parser.parse_args()
    progress = Progress(sys.stderr)
    shards = packed(words.folder, progress)
    config = study(shards, words.folder / f"ladder-{words.scale:g}", Budget(words.scale))
    began_s = time.process_time()
    result = sweep(config, on_progress=progress)
    progress.close()
    if result.status == "interrupted":
        sys.exit("interrupted; go on with the same command")
    ladder = [run for run in read_runs(config.out) if not run.name.startswith("held-out")]
    row = {
        "scale": words.scale,
        "vocab_size": Shards(shards).meta["vocab_size"],
        "context_len": CONTEXT_LEN,
        "train_tokens": len(Shards(shards).split("train")),
        "ladder_s": round(sum(run.elapsed_s for run in ladder), 1),
        "cpu_s_of_this_start": round(time.process_time() - began_s, 1),
        "scaling": result.scaling,
        "runs": [_in_short(row) for row in result.runs],
    }
    print(result.text)
    if words.no_write:
        print(row)
        return
    draw(config)
    print(append_row("scaling", row))


def packed(folder: Path, progress: Progress) -> Path:
    """Return the shards of the drawn files, made at the first call."""
    shards = folder / "shards"
    if not shards.exists():
        files = [str(path) for path in draw_files([sysconfig.get_paths()["purelib"]], NUM_BYTES)]
        texts = (document.text for document in iter_documents(files))
        Tokenizer.train(texts, algorithm="char", vocab_size=MOST_CHARACTERS).save(
            folder / "tokenizer"
        )
        config = PackConfig(
            sources=tuple(files), tokenizer=folder / "tokenizer", out=shards, val_fraction=0.01
        )
        pack(config, progress)
    return shards


def study(shards: Path, out: Path, budget: Budget) -> SweepConfig:
    """Return the settings of the ladder and the held-out run."""
    sizes = [_size(shards, shape) for shape in LADDER]
    return SweepConfig(
        out=out,
        set=(
            f"data={shards}", f"context_len={CONTEXT_LEN}", "batch_tokens=4096", "warmup_steps=50",
            "eval_every=0", "eval_tokens=16384", "final_eval_tokens=524288", "sample_every=0",
            "checkpoint_every=500", "keep_checkpoints=1", "compile=on",
        ),
        grid=(
            f"model_config={','.join(map(str, sizes))}",
            f"max_tokens={','.join(str(budget(tokens)) for tokens in TOKENS)}",
        ),
        fit=True,
        held_out=(
            f"model_config={_size(shards, HELD_OUT)}", f"max_tokens={budget(HELD_OUT_TOKENS)}",
        ),
    )  # fmt: skip


def _size(shards: Path, shape: tuple[int, int]) -> Path:
    """Write the config.json of a size beside the shards and return its path."""
    layers, width = shape
    config = dataclasses.replace(
        ModelConfig.preset(
            "char",
            vocab_size=Shards(shards).meta["vocab_size"],
            max_position_embeddings=CONTEXT_LEN,
        ),
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
    )
    path = shards.parent / f"{layers}x{width}.json"
    path.write_text(json.dumps(config.to_dict(), indent=2), encoding="utf-8")
    return path


def draw(config: SweepConfig) -> None:
    """Write the two pictures of the law."""
    runs = read_runs(config.out)
    held_out = [run for run in runs if run.name.startswith("held-out")]
    fitted = [run for run in runs if run not in held_out]
    ladder = Ladder(fitted, held_out, size=config.size, seed=config.seed)
    for name, chart in zip(("loss", "plane"), ladder.charts(), strict=True):
        (RESULTS / f"scaling_{name}.svg").write_text(chart.as_file(), encoding="utf-8")


def read_runs(out: Path) -> list[RunRecord]:
    """Read every run of a sweep."""
    return [read_run(folder) for folder in sorted((out / "runs").iterdir())]


def _in_short(row: dict[str, Any]) -> dict[str, Any]:
    kept = ("max_tokens", "num_parameters", "num_non_embedding", "tokens", "val_loss",
            "bits_per_byte", "elapsed_s")  # fmt: skip
    return {key: round(v, 5) if isinstance(v := row.get(key), float) else v for key in kept}


if __name__ == "__main__":
    main()
