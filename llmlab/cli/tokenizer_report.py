"""`llmlab tokenizer report`: show the progress, print the tables, name the folder."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmlab.data import iter_documents
from llmlab.outputs import check_free
from llmlab.tokenizers import Tokenizer
from llmlab.tokenizers.report.config import ReportConfig
from llmlab.tokenizers.report.page import as_json, write_report
from llmlab.tokenizers.report.run import make_report
from llmlab.tokenizers.report.tables import as_text
from llmlab.track import OnProgress, Progress


@dataclass(frozen=True)
class Reported:
    """What `tokenizer report` found."""

    tokenizers: list[dict[str, Any]]
    """Everything measured about each tokenizer, the first one first."""
    text: str
    """The same for people, in part."""
    out: Path | None
    """The folder with the page, if one was asked for."""

    def __str__(self) -> str:
        return self.text if self.out is None else f"{self.text}\n\n{self.out}"


def run(config: ReportConfig) -> Reported:
    """Measure a tokenizer on sources, beside others."""
    if config.out is not None:
        check_free(config.out, overwrite=config.overwrite)
    tokenizers = {
        name: Tokenizer.load(folder)
        for name, folder in _named([config.tokenizer, *config.against]).items()
    }
    progress = Progress(sys.stderr, "tokenizer report")
    report = make_report(_texts(config, progress), tokenizers, on_progress=progress)
    progress.close()
    if config.out is not None:
        write_report(report, config.out, sources=config.sources, overwrite=config.overwrite)
    return Reported(as_json(report), as_text(report), config.out)


def _texts(config: ReportConfig, on_progress: OnProgress) -> Iterator[str]:
    limit = float("inf") if config.limit_mb is None else config.limit_mb * 1e6
    num_bytes = 0
    for document in iter_documents(config.sources, on_progress=on_progress):
        yield document.text
        num_bytes += len(document.text.encode("utf-8", "replace"))
        if num_bytes >= limit:
            break


def _named(folders: list[Path]) -> dict[str, Path]:
    """Name folders by their last part, or in full where that is not enough to tell them apart."""
    lasts = [folder.resolve().name for folder in folders]
    return {
        last if lasts.count(last) == 1 else str(folder): folder
        for last, folder in zip(lasts, folders, strict=True)
    }
