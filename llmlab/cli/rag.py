"""`llmlab rag index` and `llmlab rag ask`: progress on stderr, the result on stdout."""

import sys
from dataclasses import dataclass
from pathlib import Path

from llmlab import rag  # whose load_embedder brings torch with it, once it is called
from llmlab.errors import ConfigError, RetrievalError
from llmlab.outputs import whole_folder
from llmlab.rag.answer import Answer, Citation, TextDelta
from llmlab.rag.config import AskConfig, IndexConfig
from llmlab.rag.index import Index, IndexReport, is_index
from llmlab.rag.pipeline import Pipeline
from llmlab.track import Progress


@dataclass(frozen=True)
class IndexResult:
    """What `rag index` did."""

    documents: int
    chunks: int
    changes: IndexReport
    out: Path

    def __str__(self) -> str:
        counts = vars(self.changes)
        names = ("added", "updated", "unchanged", "deleted", "unreadable")
        changed = ", ".join(f"{counts[name]} {name}" for name in names if counts[name])
        return (
            f"{self.documents} documents in {self.chunks} chunks ({changed or 'no files'}; "
            f"{self.changes.embedded} chunks embedded)\n{self.out}"
        )


@dataclass(frozen=True)
class AskResult:
    """What `rag ask` found out."""

    question: str
    answer: str
    grounded: bool
    citations: tuple[Citation, ...]
    unsupported: tuple[str, ...]
    timings: dict[str, float]
    shown: bool
    """The answer's text has been streamed to the terminal already."""

    def __str__(self) -> str:
        lines = [] if self.shown else [self.answer]
        lines += ["", *(_line(citation) for citation in self.citations)]
        lines += [f"  not supported by any source: {claim}" for claim in self.unsupported]
        if not self.citations:
            lines += ["  no source supports this answer"]
        return "\n".join(lines)


def index(config: IndexConfig) -> IndexResult:
    """Index folders, anew or what changed in them."""
    if not config.folders:
        raise ConfigError("no folder given; name one, as in `llmlab rag index docs --out index`")
    progress = Progress(sys.stderr, "rag index")
    if not config.overwrite or not config.out.exists():
        return _fill(config, config.out, progress)
    if not is_index(config.out):
        raise RetrievalError(f"{config.out} is not an index folder; choose another --out")
    with whole_folder(config.out, overwrite=True) as partial:
        return _fill(config, partial, progress)


def ask(config: AskConfig) -> AskResult:
    """Answer one question; on a terminal the text appears as it is written."""
    question = " ".join(config.question)
    live = sys.stdout.isatty()
    with (
        Index.open(config.index) as opened,
        Pipeline(
            opened,
            config.base_url,
            config.model,
            k=config.k,
            mode=config.mode,
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            context_len=config.context_len,
            timeout_s=config.timeout_s,
            api_key=_first_line(config.api_key_file) if config.api_key_file else None,
        ) as pipeline,
    ):
        for event in pipeline.ask_stream(question):
            if live and isinstance(event, TextDelta):
                print(event.text, end="", flush=True)
    assert isinstance(event, Answer)  # the last event always is
    return AskResult(
        question=question,
        answer=event.text,
        grounded=event.grounded,
        citations=event.citations,
        unsupported=event.unsupported,
        timings=dict(event.timings),
        shown=live,
    )


def _fill(config: IndexConfig, place: Path, progress: Progress) -> IndexResult:
    embedder = rag.load_embedder(config.embedder) if config.embedder else None
    with Index(
        place,
        embedder,
        chunk_tokens=config.chunk_tokens,
        overlap_tokens=config.overlap_tokens,
    ) as opened:
        changes = IndexReport()
        for folder in config.folders:
            changes = changes.plus(**vars(opened.add_folder(folder, on_progress=progress)))
        opened.prepare()
        progress.close()
        return IndexResult(opened.num_documents, opened.num_chunks, changes, config.out)


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read the key in {path}: {error}; check --api-key-file"
        ) from error


def _line(citation: Citation) -> str:
    page = f", page {citation.page}" if citation.page else ""
    found = "" if citation.origin == "model" else " (attributed)"
    quote = " ".join(citation.quote.split())
    place = f"{citation.doc}:{citation.start}-{citation.end}{page}"
    return f"  [{citation.marker}] {place}{found}\n      “{quote}”"
