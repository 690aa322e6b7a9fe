"""`--find-lr`: what rate to train this model on these data with, found in a hundred steps.

Writes lr.json and lr.html (the curve) into the run's folder. Not here: the ramp
(llmlab/training/lr_finder.py).
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from llmlab.hardware import pick_device
from llmlab.model import build_model
from llmlab.outputs import check_free, whole_file
from llmlab.page import Line, Table, line_chart, render
from llmlab.pretrain.config import PretrainConfig
from llmlab.pretrain.corpus import Corpus
from llmlab.pretrain.shape import model_config
from llmlab.pretrain.sizing import learning_rate_for, sized
from llmlab.track import OnProgress, silent
from llmlab.training.lr_finder import RateRamp, find_learning_rate

_ROWS = 12


@dataclass(frozen=True, kw_only=True)
class FoundRate:
    """What `find_lr` found."""

    ramp: RateRamp
    """Every step."""

    optimizer: str
    """The rule the rate is for."""

    default: float
    """The rate a run takes when it is not told one."""

    page: Path
    """The curve."""

    def table(self) -> Table:
        """Return the loss at rates along the ramp."""
        stride = max(1, len(self.ramp.rates) // _ROWS)
        rows = zip(self.ramp.rates, self.ramp.losses, self.ramp.smoothed, strict=True)
        return Table(
            title=f"loss while the rate of {self.optimizer} rises",
            note="One step at each rate; the loss is that before the step, nats a token.",
            columns=("learning rate", "loss", "smoothed"),
            rows=tuple(
                (f"{rate:.1e}", f"{loss:.3f}", f"{smooth:.3f}")
                for rate, loss, smooth in list(rows)[::stride]
            ),
        )


def find_lr(config: PretrainConfig, *, on_progress: OnProgress = silent) -> FoundRate:
    """Find a learning rate for `config`, and write lr.json and lr.html into `config.out`.

    Raises:
        ConfigError: settings that do not go together.
        DataError: the data cannot be used.
        ModelError: the loss did not fall.
        OutputError: `out` is taken, or the disk is full.
    """
    check_free(config.out, overwrite=config.overwrite)
    with Corpus(config, on_progress) as corpus:
        shape = model_config(config, corpus.tokenizer)
        config = sized(config, shape)
        torch.manual_seed(config.seed)
        model = build_model(shape, z_loss=config.z_loss, recompute=config.activation_checkpointing)
        ramp = find_learning_rate(
            model.to(pick_device()),
            corpus.batches(config.batch_size),
            config.plan,
            on_progress=on_progress,
        )
    found = FoundRate(
        ramp=ramp,
        optimizer=config.optimizer,
        default=learning_rate_for(config.optimizer, shape.hidden_size),
        page=config.out / "lr.html",
    )
    _write(found)
    return found


def _write(found: FoundRate) -> None:
    ramp = found.ramp
    facts = {"optimizer": found.optimizer, "default": found.default, **dataclasses.asdict(ramp)}
    with whole_file(found.page.with_name("lr.json")) as partial:
        partial.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    at = ramp.suggested
    chart = line_chart(
        "loss before each step",
        [
            Line(label="loss", points=list(zip(ramp.rates, ramp.losses, strict=True))),
            Line(label="smoothed", points=list(zip(ramp.rates, ramp.smoothed, strict=True))),
            Line(
                label=f"suggested: {at:g}",
                points=[(at, min(ramp.losses)), (at, max(ramp.losses))],
                style="dashes",
            ),
        ],
        x_label="learning rate",
        x_log=True,
    )
    html = render(
        Path(__file__).parent / "find_lr.html.jinja",
        title="Learning rate",
        found=found,
        chart=chart,
        table=found.table(),
    )
    with whole_file(found.page) as partial:
        partial.write_text(html, encoding="utf-8")
