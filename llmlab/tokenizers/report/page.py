"""The files of a report: report.html, report.md, report.json; tokenizers.html.jinja is the layout.

The page stands alone: no script, no other file. Tokens come from vocabularies that anybody may
have written, so everything in it is escaped.
"""

import dataclasses
import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from llmlab.outputs import whole_folder
from llmlab.page import render
from llmlab.tokenizers.report.run import YOUR_TEXT, Report
from llmlab.tokenizers.report.tables import as_markdown, compared, failures, vocabulary_tables
from llmlab.tokenizers.report.view import NUM_COLOURS


def write_report(
    report: Report, folder: Path, *, sources: Sequence[str], overwrite: bool = False
) -> None:
    """Write the three files, whole or not at all.

    Args:
        report: what was measured.
        folder: where the files go.
        sources: what was read, named in the heading.
        overwrite: replace a folder that holds something.

    Raises:
        OutputError: the folder exists and `overwrite` is false, or cannot be written.
    """
    with whole_folder(folder, overwrite=overwrite) as partial:
        content = json.dumps(as_json(report), ensure_ascii=False, indent=2) + "\n"
        (partial / "report.json").write_text(content, encoding="utf-8")
        (partial / "report.md").write_text(as_markdown(report), encoding="utf-8")
        (partial / "report.html").write_text(as_page(report, sources), encoding="utf-8")


def as_json(report: Report) -> list[dict[str, Any]]:
    """Return everything measured, one object a tokenizer; the coloured views are left out."""
    return [
        {name: value for name, value in dataclasses.asdict(facts).items() if name != "views"}
        for facts in report.tokenizers
    ]


def as_page(report: Report, sources: Sequence[str]) -> str:
    """Return the report as one HTML page."""
    first, *others = report.tokenizers
    return render(
        Path(__file__).with_name("tokenizers.html.jinja"),
        title=f"Tokenizer report: {first.name}",
        first=first,
        tokenizers=report.tokenizers,
        others=", ".join(facts.name for facts in others),
        sources=", ".join(sources),
        date=date.today().isoformat(),
        facts=_facts(report),
        failures=failures(report),
        compared=compared(report),
        kinds=list(first.views),
        num_colours=NUM_COLOURS,
        vocabularies=[(facts.name, vocabulary_tables(facts)) for facts in report.tokenizers],
    )


def _facts(report: Report) -> list[tuple[str, str]]:
    first = report.tokenizers[0]
    text, found = first.texts[YOUR_TEXT], first.vocabulary
    facts = [
        ("ids in the vocabulary", f"{first.vocab_size:,}"),
        ("bytes per token, your text", f"{text.bytes_per_token:.2f}"),
        ("of the ids used", f"{found.used / max(found.tokens, 1):.0%}"),
        ("documents not given back", f"{text.failed_documents:,} of {text.documents:,}"),
        ("encoded here", f"{first.encode_mb_per_s:.1f} MB/s"),
    ]
    if text.tokens_per_word is not None:
        facts.insert(2, ("tokens per word, your text", f"{text.tokens_per_word:.2f}"))
    return facts
