"""The quickstart: every stage once, in order, and a report.

Not here: the stages' own work, and the wording of the report (report.py).
"""

from dataclasses import dataclass
from pathlib import Path

from llmlab.config import save_config
from llmlab.outputs import whole_folder
from llmlab.quickstart import chat_model, own_model
from llmlab.quickstart.config import QuickstartConfig
from llmlab.quickstart.journal import Journal
from llmlab.quickstart.report import write_report
from llmlab.serve import running_server
from llmlab.track import OnProgress, silent


@dataclass(frozen=True)
class QuickstartResult:
    """Where the report lies and how long the run took."""

    bits_per_byte: float
    seconds: float
    report: Path

    def __str__(self) -> str:
        minutes = f"{self.seconds / 60:.1f} min"
        return f"{self.bits_per_byte:.3f} bits per byte held out, {minutes} in all\n{self.report}"


def quickstart(config: QuickstartConfig, *, on_progress: OnProgress = silent) -> QuickstartResult:
    """Run every stage into `config.out` and write `report.html` there.

    Raises:
        OutputError: `config.out` holds something and `config.overwrite` is false.
        LabError: a stage failed; what came before it stays in `config.out`.
    """
    journal = run_stages(config, on_progress=on_progress)
    report = write_report(config, journal)
    return QuickstartResult(journal.bits_per_byte, journal.total_s, report)


def run_stages(config: QuickstartConfig, *, on_progress: OnProgress = silent) -> Journal:
    """Run every stage into `config.out` and return the record of it; raises as `quickstart`."""
    with whole_folder(config.out, overwrite=config.overwrite) as partial:
        save_config(config, partial / "config.toml")
    journal = Journal(show=on_progress)
    own_model.train_tokenizer(config, journal)
    own_model.pack_shards(config, journal)
    own_model.pretrain_model(config, journal)
    own_model.check_with_transformers(config, journal)
    own_model.finetune_and_merge(config, journal)
    own_model.serve_and_complete(config, journal)
    models = {"quickstart": config.out / "model"}
    if smollm2 := chat_model.import_smollm2(config, journal):
        with running_server(chat_model.serving(smollm2, "smollm2")) as url:
            chat_model.chat(url, journal)
            chat_model.ask_the_handbook(config, url, journal)
        models["smollm2"] = smollm2
    chat_model.score(config, models, journal)
    return journal
