"""`llmlab pretrain`: show the progress, say what came out or how to go on."""

import os
import sys
from dataclasses import dataclass

from llmlab.pretrain.config import PretrainConfig
from llmlab.pretrain.find_lr import FoundRate, find_lr
from llmlab.pretrain.run import PretrainResult, pretrain
from llmlab.track import Progress


@dataclass(frozen=True)
class Pretrained(PretrainResult):
    """A finished run as the user sees it."""

    def __str__(self) -> str:
        lines = [
            f"{self.num_parameters / 1e6:.2f}M parameters, {self.steps:,} steps, "
            f"{self.tokens:,} tokens in {self.elapsed_s:.0f} s; "
            f"loss of the last step {self.train_loss:.3f}"
        ]
        if self.val_loss is not None:
            lines.append(
                f"held out: loss {self.val_loss:.4f}, {self.bits_per_byte:.4f} bits per byte "
                f"over {self.val_tokens:,} tokens"
            )
        return "\n".join([*lines, f"report: {self.report}", str(self.model)])


@dataclass(frozen=True)
class Found(FoundRate):
    """A learning rate as the user sees it."""

    def __str__(self) -> str:
        suggested = (
            f"suggested: --learning-rate {self.ramp.suggested:g} (a run takes {self.default:g} "
            "when it is not told one)"
        )
        return "\n".join([self.table().as_text(), suggested, str(self.page)])


def run(config: PretrainConfig) -> Pretrained | Found | None:
    """Train a model from scratch, or find a learning rate for it.

    Returns:
        What came out; None on all but the first of several processes that torchrun started.

    Raises:
        SystemExit: 130 after an interrupt, once the checkpoint is saved.
    """
    is_first = os.environ.get("RANK", "0") == "0"
    progress = Progress(sys.stderr, "pretrain")
    if config.find_lr:
        found = find_lr(config, on_progress=progress)
        progress.close()
        return Found(**vars(found))
    result = pretrain(config, on_progress=progress)
    progress.close()
    if result.status == "interrupted":
        if is_first:
            print(
                f"llmlab: interrupted at step {result.steps}; resume with "
                f"`llmlab pretrain --config {result.out / 'config.toml'} --resume`",
                file=sys.stderr,
            )
        raise SystemExit(130)
    return Pretrained(**vars(result)) if is_first else None
