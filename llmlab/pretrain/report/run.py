"""`llmlab pretrain report`: one run's card, or several runs side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmlab.errors import OutputError
from llmlab.page import Chart, Table, escape_markdown, render
from llmlab.pretrain.report.comparison import as_row, comparison_charts, comparison_tables, spreads
from llmlab.pretrain.report.config import ReportConfig
from llmlab.pretrain.report.page import write_card, write_pair
from llmlab.pretrain.report.record import RunRecord, read_run


@dataclass(frozen=True)
class Reported:
    """What `pretrain report` found."""

    runs: list[dict[str, Any]]
    """The final numbers of each run."""

    text: str
    """The same for people."""

    report: Path
    """The page."""

    def __str__(self) -> str:
        return f"{self.text}\n\n{self.report}"


def report(config: ReportConfig) -> Reported:
    """Write report.md and report.html about one run or several.

    Raises:
        DataError: one of them is no run's folder.
        OutputError: `out` holds a report already, or cannot be written.
    """
    if config.out is not None and not config.overwrite:
        _check_free(config.out)
    runs = [read_run(folder) for folder in config.runs]
    tables = comparison_tables(runs)
    if len(runs) == 1:
        page = write_card(config.runs[0], config.out)
    else:
        assert config.out is not None
        page = write_comparison(config.out, "Runs side by side", runs)
    return Reported(
        runs=[as_row(run) for run in runs],
        text="\n\n".join(table.as_text() for table in tables),
        report=page,
    )


def write_comparison(
    out: Path,
    title: str,
    runs: Sequence[RunRecord],
    *,
    lead: str = "",
    more_tables: Sequence[Table] = (),
    more_charts: Sequence[Chart] = (),
) -> Path:
    """Write report.md and report.html about several runs and return the page.

    Args:
        out: folder for the two files.
        title: heading.
        runs: what is compared.
        lead: a sentence below the heading; unset is the best group.
        more_tables: stand before those of the comparison.
        more_charts: stand before those of the comparison.
    """
    lead = lead or _best(runs)
    charts = [*more_charts, *comparison_charts(runs)]
    tables = [*more_tables, *comparison_tables(runs)]
    markdown = "\n\n".join(
        [f"# {escape_markdown(title)}", escape_markdown(lead), *(t.as_markdown() for t in tables)]
    )
    html = render(
        Path(__file__).with_name("comparison.html.jinja"),
        title=title, lead=lead, charts=charts, tables=tables,
    )  # fmt: skip
    return write_pair(out, markdown + "\n", html)


def _best(runs: Sequence[RunRecord]) -> str:
    groups = spreads(runs)
    if not groups:
        return f"{len(runs)} runs; none has a held-out loss yet."
    best = groups[0]
    of = f" with {best.label}" if best.label else ""
    return f"{len(runs)} runs. Lowest held-out loss{of}: {best} nats per token."


def _check_free(out: Path) -> None:
    for name in ("report.md", "report.html"):
        if (out / name).exists():
            raise OutputError(
                f"{out / name} already exists; choose another --out or add --overwrite"
            )
