"""A table of a report, for terminals, Markdown and pages alike.

Not here: what the cells say. Cells may come from anybody, so both spellings escape them.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

_NUMBER = re.compile(r"[-+−±~<>≥≤]?\s*\d")


@dataclass(frozen=True)
class Table:
    """Rows of text under headings; the first column names the row."""

    title: str
    note: str
    """What the numbers mean; may be empty."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    token_column: int | None = None
    """The column that holds text from the machine, such as tokens, which is set as code."""

    bars: tuple[float, ...] | None = None
    """A share, 0 to 1, of each row that a page can draw."""

    @property
    def left(self) -> frozenset[int]:
        """Columns that are set to the left: the first, the token column, those without a number."""
        return frozenset(
            at
            for at in range(len(self.columns))
            if at in (0, self.token_column) or not any(_NUMBER.match(row[at]) for row in self.rows)
        )

    def as_text(self) -> str:
        """Return the table for a terminal, numbers to the right."""
        lines = [self.columns, *self.rows]
        widths = [max(len(line[at]) for line in lines) for at in range(len(self.columns))]
        left = self.left
        aligned = (
            "  ".join(
                cell.ljust(width) if at in left else cell.rjust(width)
                for at, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        )
        return "\n".join([self.title, *(f"  {line.rstrip()}" for line in aligned)])

    def as_markdown(self) -> str:
        """Return the table in Markdown, under a heading."""
        left = self.left
        rule = ("---" if at in left else "--:" for at in range(len(self.columns)))
        lines = [_markdown_row(map(escape_markdown, self.columns)), _markdown_row(rule)]
        for row in self.rows:
            cells = (
                _code(cell) if at == self.token_column else escape_markdown(cell)
                for at, cell in enumerate(row)
            )
            lines.append(_markdown_row(cells))
        note = ["", escape_markdown(self.note)] if self.note else []
        return "\n".join([f"## {escape_markdown(self.title)}", *note, "", *lines])


def escape_markdown(text: str) -> str:
    """Return text that Markdown shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", text)


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _code(text: str) -> str:
    """Return a code span, which Markdown takes literally but for bars, inside a table."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * (longest + 1)
    padded = f" {text} " if text.startswith("`") or text.endswith("`") else text
    return fence + padded.replace("|", "\\|") + fence
