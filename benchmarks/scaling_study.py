"""Claim: a law fitted to small runs predicts the loss of a larger one.

A ladder of four sizes (`--depth` 1 to 4) and four budgets of tokens, as `llmlab pretrain sweep`
trains it, on the source text of the standard library: BPE with 2,048 tokens, context 256, each run
with the settings that follow its size and a schedule of its own. L = E + A/N^alpha + B/D^beta is
fitted to their held-out losses, N without the table of the vocabulary. A model of depth 5, twice
as large as the largest and on twice its tokens, is trained afterwards and compared with what the
law says of it. The ladder takes at most 30 CPU-minutes on two cores.

    python -m benchmarks.scaling_study [--scale 1.0] [--folder runs/scaling_study] [--no-write]

`--scale` multiplies every budget. Stopped and started again it goes on. Besides the row it writes
results/scaling_loss.svg and results/scaling_plane.svg.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.rows import RESULTS, append_row
from llmlab.data import PackConfig, Shards, iter_documents, pack
from llmlab.pretrain.report.record import RunRecord, read_run
from llmlab.pretrain.sweep.config import SweepConfig
from llmlab.pretrain.sweep.run import sweep
from llmlab.pretrain.sweep.scaling import Ladder
from llmlab.tokenizers import Tokenizer
from llmlab.track import Progress

DEPTHS = (1, 2, 3, 4)
TOKENS = (125_000, 250_000, 500_000, 1_000_000)
HELD_OUT_DEPTH, HELD_OUT_TOKENS = 5, 2_000_000
VOCAB_SIZE = 2048
CONTEXT_LEN = 256
FIRST_BYTES = 4_000_000
"""Text that the tokenizer learns from."""


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
        "vocab_size": VOCAB_SIZE,
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
    """Return the shards of the standard library, made at the first call."""
    shards = folder / "shards"
    if not shards.exists():
        Tokenizer.train(_first_texts(), vocab_size=VOCAB_SIZE, on_progress=progress).save(
            folder / "tokenizer"
        )
        pack(PackConfig(sources=("stdlib",), tokenizer=folder / "tokenizer", out=shards), progress)
    return shards


def study(shards: Path, out: Path, budget: Budget) -> SweepConfig:
    """Return the settings of the ladder and the held-out run."""
    return SweepConfig(
        out=out,
        set=(
            f"data={shards}", f"context_len={CONTEXT_LEN}", "warmup_steps=20", "eval_every=0",
            "eval_tokens=16384", "final_eval_tokens=65536", "sample_every=0",
            "checkpoint_every=100", "keep_checkpoints=1",
        ),
        grid=(
            f"depth={','.join(map(str, DEPTHS))}",
            f"max_tokens={','.join(str(budget(tokens)) for tokens in TOKENS)}",
        ),
        fit=True,
        held_out=(f"depth={HELD_OUT_DEPTH}", f"max_tokens={budget(HELD_OUT_TOKENS)}"),
    )  # fmt: skip


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


def _first_texts() -> list[str]:
    texts, num_bytes = [], 0
    for document in iter_documents(["stdlib"]):
        texts.append(document.text)
        num_bytes += len(document.text.encode("utf-8", "replace"))
        if num_bytes >= FIRST_BYTES:
            break
    return texts


def _in_short(row: dict[str, Any]) -> dict[str, Any]:
    kept = ("depth", "max_tokens", "num_parameters", "num_non_embedding", "tokens", "val_loss",
            "bits_per_byte", "elapsed_s")  # fmt: skip
    return {key: round(v, 5) if isinstance(v := row.get(key), float) else v for key in kept}


if __name__ == "__main__":
    main()
