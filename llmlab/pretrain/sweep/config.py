"""The settings of `llmlab pretrain sweep`. Torch-free."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmlab.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Train a model for each combination of settings, compare them, fit a scaling law.

    Fields and values are those of `llmlab pretrain`; whole numbers may be written 500k, 2M or 1e9.
    Run the same command again to go on: finished runs are kept, killed ones resumed.
    """

    out: Path
    """Folder of the sweep; each run is in `out/runs`."""

    overwrite: bool = False
    """Train runs anew whose settings are no longer those they were trained with."""

    base: Path | None = None
    """TOML of settings that all runs share, such as the config.toml of a run."""

    set: tuple[str, ...] = ()
    """More settings that all runs share, as `field=value`; they win over base."""

    grid: tuple[str, ...] = ()
    """`field=value,value,…`; every combination is trained. Write the items of a field that takes
    several with a plus sign: `betas=0.9+0.95,0.9+0.99`."""

    random: tuple[str, ...] = ()
    """How many draws, then what to draw, each as `field=low:high`, `field=log:low:high` or
    `field=value,value,…`; each draw is combined with the grid."""

    fit: bool = False
    """Fit loss = E + A/N^alpha + B/D^beta to the runs; a ladder is a grid over sizes and
    max_tokens."""

    size: Literal["non_embedding", "total"] = "non_embedding"
    """What counts as N. Without the tables of the vocabulary models of different depth fall on one
    curve; with them they do not, for in a small model the table is most of it (arXiv:2001.08361,
    figure 6)."""

    held_out: tuple[str, ...] = ()
    """Settings of one more run, larger than the others, as `field=value`: it is trained last, kept
    out of the fit, and compared with what the law predicts."""

    seed: int = 0
    """Seed of the random draws and of the fit's intervals."""

    def __post_init__(self) -> None:
        """Refuse what no sweep can be made of.

        Raises:
            ConfigError: names the field, its value and a value that works.
        """
        if not self.grid and not self.random:
            raise ConfigError(
                "nothing to vary: grid and random are both unset; "
                "try --grid learning_rate=1e-3,3e-3"
            )
        if self.random and (not self.random[0].isdigit() or len(self.random) < 2):
            raise ConfigError(
                f"random={' '.join(self.random)!r} must be a number of draws and what to draw; "
                "try --random 20 learning_rate=log:1e-4:1e-2"
            )
        if self.held_out and not self.fit:
            raise ConfigError(
                f"held_out={' '.join(self.held_out)!r} is compared with a fit; add --fit"
            )
