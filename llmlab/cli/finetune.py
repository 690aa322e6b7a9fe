"""`llmlab finetune` and `llmlab merge`."""

import sys
from dataclasses import dataclass
from pathlib import Path

from llmlab.finetune.config import FinetuneConfig, MergeConfig
from llmlab.finetune.merging import merge as merge_adapter
from llmlab.finetune.run import finetune
from llmlab.track import Progress


@dataclass(frozen=True)
class Finetuned:
    """What the user sees after finetuning."""

    status: str
    method: str
    examples: int
    held_out: int
    too_long: int
    steps: int
    seconds: float
    trained_parameters: int
    parameters: int
    base_val_loss: float | None
    val_loss: float | None
    out: Path

    def __str__(self) -> str:
        share = self.trained_parameters / self.parameters
        lines = [
            f"{self.status} after {self.steps} steps on {self.examples} examples in "
            f"{self.seconds:.0f} s; trained {self.trained_parameters:,} of {self.parameters:,} "
            f"parameters ({share:.1%})"
        ]
        if self.base_val_loss is not None and self.val_loss is not None:
            lines.append(
                f"loss on {self.held_out} held-out examples: {self.base_val_loss:.3f} before, "
                f"{self.val_loss:.3f} after (nats a token of the answers)"
            )
        if self.status == "interrupted":
            lines.append("go on with the same command and --resume")
        return "\n".join([*lines, str(self.out)])


@dataclass(frozen=True)
class Merged:
    """What the user sees after merging."""

    out: Path

    def __str__(self) -> str:
        return str(self.out)


def run(config: FinetuneConfig) -> Finetuned:
    """Adapt a model to chats."""
    progress = Progress(sys.stderr, "finetune")
    result = finetune(config, on_progress=progress)
    progress.close()
    return Finetuned(
        status=result.status,
        method=result.method,
        examples=result.num_examples,
        held_out=result.num_val,
        too_long=result.num_too_long,
        steps=result.steps,
        seconds=result.seconds,
        trained_parameters=result.trained_parameters,
        parameters=result.parameters,
        base_val_loss=result.base_val_loss,
        val_loss=result.val_loss,
        out=result.folder if result.status == "finished" else config.out,
    )


def merge(config: MergeConfig) -> Merged:
    """Fold an adapter into its base model."""
    return Merged(merge_adapter(config))
