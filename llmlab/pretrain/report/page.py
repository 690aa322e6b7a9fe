"""The files of a report card: report.md and report.html, beside the files they are made of.

Samples and settings may hold anything, so both spellings escape them.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llmlab.errors import LabError
from llmlab.outputs import whole_file
from llmlab.page import escape_markdown, render
from llmlab.pretrain.report.card import Card, make_card
from llmlab.pretrain.report.record import read_run


def write_card(run: Path, out: Path | None = None) -> Path:
    """Write the report card of a run and return the page.

    Args:
        run: its folder; finished or not.
        out: where report.md and report.html go; unset is the run's folder.

    Raises:
        DataError: `run` is no run's folder.
        OutputError: the files cannot be written.
    """
    return write_pair(out or run, *_spelled(make_card(read_run(run))))


def write_pair(folder: Path, markdown: str, html: str) -> Path:
    """Write report.md and report.html into a folder and return the page."""
    for name, text in (("report.md", markdown), ("report.html", html)):
        with whole_file(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
    return folder / "report.html"


@contextmanager
def reported(run: Path) -> Iterator[None]:
    """Write the report card of a run when the block ends, however it ends.

    What went wrong with the run is raised, not what went wrong with its report.
    """
    try:
        yield
    except BaseException:
        with suppress(LabError, OSError):
            write_card(run)
        raise
    write_card(run)


def card_markdown(card: Card) -> str:
    """Return a card in Markdown."""
    parts = [f"# {escape_markdown(card.title)}", escape_markdown(card.lead)]
    parts.append("\n".join(f"- {name}: **{escape_markdown(value)}**" for name, value in card.facts))
    parts += [f"> {escape_markdown(' '.join(sentence.split()))}" for sentence in card.findings]
    parts.append("## What to run next")
    parts += [f"{command.purpose}:\n\n{_fenced(command.line)}" for command in card.commands]
    parts += [table.as_markdown() for table in card.tables if table.rows]
    for step, rows in card.samples[-1:]:
        parts.append(f"## Samples after step {step:,}")
        parts += [_fenced(row["prompt"] + row["text"]) for row in rows]
    if card.notes:
        notes = "\n".join(f"- {escape_markdown(' '.join(note.split()))}" for note in card.notes)
        parts.append(f"## What the run said\n\n{notes}")
    return "\n\n".join(parts) + "\n"


def card_page(card: Card) -> str:
    """Return a card as an HTML page."""
    return render(Path(__file__).with_name("card.html.jinja"), title=card.title, card=card)


def _spelled(card: Card) -> tuple[str, str]:
    return card_markdown(card), card_page(card)


def _fenced(text: str) -> str:
    """Return a code block; its fence is longer than any the text holds."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"
