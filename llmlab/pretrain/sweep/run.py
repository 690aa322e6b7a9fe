"""`llmlab pretrain sweep`: train what is not trained yet, then compare.

The sweep's folder holds

    runs/NAME/                    one run each, as `llmlab pretrain` leaves it
    sweep.toml                    the settings of the sweep
    sweep.json                    the numbers of each run, and the fitted law
    report.md, report.html        the same to look at, written after every run

Not here: the settings of each run (trials.py), the scaling law (scaling.py).
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llmlab.config import save_config, toml_flags
from llmlab.errors import DataError, ModelError, OutputError
from llmlab.outputs import whole_file
from llmlab.page import Chart, Table
from llmlab.pretrain.config import PretrainConfig
from llmlab.pretrain.report.comparison import as_row, comparison_tables, differing
from llmlab.pretrain.report.record import RunRecord, read_run
from llmlab.pretrain.report.run import write_comparison
from llmlab.pretrain.run import pretrain
from llmlab.pretrain.sweep.charts import setting_charts
from llmlab.pretrain.sweep.config import SweepConfig
from llmlab.pretrain.sweep.scaling import Ladder
from llmlab.pretrain.sweep.trials import Trial, make_trials, read_settings
from llmlab.track import OnProgress, silent

_UNCOMPARED = ("out", "overwrite", "resume", "tensorboard", "log")

_SIZED = ("learning_rate", "batch_tokens")
"""Fields that follow the size of the model where they are unset; a run stores what followed."""


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found."""

    status: Literal["finished", "interrupted"]
    runs: list[dict[str, Any]]
    """The final numbers of each run, the lowest held-out loss first."""

    scaling: dict[str, Any] | None
    """The fitted law, if one was asked for."""

    text: str
    """The same for people."""

    report: Path
    """The page."""


def sweep(config: SweepConfig, *, on_progress: OnProgress = silent) -> SweepResult:
    """Train the runs of a sweep one after the other, and compare them.

    A run whose loss stops being finite is reported as failed, and the sweep goes on.

    Raises:
        ConfigError: a word that is no setting, or settings that do not go together.
        DataError: the data cannot be used; or too few runs for a fit.
        OutputError: a run of that name was trained with other settings.
    """
    trials = make_trials(config)
    states = {trial.name: _standing(trial, overwrite=config.overwrite) for trial in trials}
    config.out.mkdir(parents=True, exist_ok=True)
    save_config(dataclasses.replace(config, overwrite=False), config.out / "sweep.toml")
    status: Literal["finished", "interrupted"] = "finished"
    for number, trial in enumerate(trials, start=1):
        place = f"[{number}/{len(trials)}] {trial.name}"
        if states[trial.name] == "kept":
            on_progress({"note": f"{place}: kept"})
            continue
        on_progress({"note": place})
        if not _train(trial, resume=states[trial.name] == "begun", on_progress=on_progress):
            status = "interrupted"
            break
        _write(config, trials, whole=False)
    result = _write(config, trials, whole=status == "finished")
    return dataclasses.replace(result, status=status)


def _standing(trial: Trial, *, overwrite: bool) -> Literal["new", "begun", "kept"]:
    """Tell what is to be done for a trial.

    Raises:
        OutputError: its folder has a run with other settings.
    """
    folder = trial.config.out
    if not (folder / "config.toml").is_file():
        return "new"
    then = read_settings(toml_flags(folder / "config.toml", PretrainConfig))
    changes = [
        f"{name} {getattr(then, name)} -> {value}"
        for name, value in vars(trial.config).items()
        if name not in _UNCOMPARED
        and not (value is None and name in _SIZED)
        and getattr(then, name) != value
    ]
    if changes and not overwrite:
        raise OutputError(
            f"{folder} was trained with other settings ({'; '.join(changes)}); choose another "
            "--out, or add --overwrite to train it anew"
        )
    run = read_run(folder)
    if changes:
        return "new"
    # A run that diverged would do so again; one that a full disk ended would not.
    if run.status == "finished" or (run.ended or {}).get("kind") == ModelError.__name__:
        return "kept"
    return "begun" if run.checkpoints else "new"


def _train(trial: Trial, *, resume: bool, on_progress: OnProgress) -> bool:
    """Train one run; tell whether it came to its end."""
    config = dataclasses.replace(trial.config, resume=resume, overwrite=not resume)
    try:
        return pretrain(config, on_progress=on_progress).status == "finished"
    except ModelError as error:
        on_progress({"note": f"failed: {error}"})
        return True


def _write(config: SweepConfig, trials: Sequence[Trial], *, whole: bool) -> SweepResult:
    """Write what there is so far and return it; without `whole`, a law that waits is left out."""
    folders = {trial.config.out: trial for trial in trials}
    records = [read_run(folder) for folder in folders if (folder / "config.toml").is_file()]
    ladder = _ladder(config, records, folders, whole=whole)
    tables: list[Table] = ladder.tables() if ladder else []
    charts: list[Chart] = ladder.charts() if ladder else setting_charts(records)
    page = write_comparison(
        config.out,
        f"Sweep: {config.out.resolve().name}",
        records,
        lead=ladder.sentence() if ladder else "",
        more_tables=tables,
        more_charts=charts,
    )
    fields = differing(records)
    rows = [
        {**{name: record.settings.get(name) for name in fields}, **as_row(record)}
        for record in sorted(records, key=lambda r: r.final.get("val_loss", float("inf")))
    ]
    scaling = ladder.as_json() if ladder else None
    with whole_file(config.out / "sweep.json") as partial:
        content = json.dumps({"runs": rows, "scaling": scaling}, indent=2, ensure_ascii=False)
        partial.write_text(content + "\n", encoding="utf-8")
    shown = [*tables[:2], *comparison_tables(records)]
    text = "\n\n".join(table.as_text() for table in shown)
    return SweepResult("finished", rows, scaling, text, page)


def _ladder(
    config: SweepConfig, records: Sequence[RunRecord], folders: dict[Path, Trial], *, whole: bool
) -> Ladder | None:
    if not config.fit:
        return None
    seen = [record for record in records if not folders[record.folder].held_out]
    kept_out = [record for record in records if folders[record.folder].held_out]
    try:
        return Ladder(seen, kept_out, size=config.size, seed=config.seed)
    except DataError:
        if whole:
            raise
        return None
