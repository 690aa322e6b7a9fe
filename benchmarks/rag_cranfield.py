"""Retrieval quality and speed on Cranfield: 1,400 abstracts, 225 questions, judged by experts.

Claim: hybrid search finds more than either of its legs. Reads `$LLMLAB_DATA/cranfield`
(`cran.all.1400`, `cran.qry`, `cranqrel`), appends one row to
`benchmarks/results/rag_cranfield.jsonl`. A grade above 0 is relevant; grades are not compared.

    python -m benchmarks.rag_cranfield [--no-write] [--quality-only]

Use `--quality-only` on a machine with other work: nDCG does not depend on it, times do.
"""

import json
import math
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.rows import append_row
from llmlab.rag import Document, Index
from llmlab.rag.config import Mode

MODES: tuple[Mode, ...] = ("hybrid", "bm25", "dense")
_POOL = 100


@dataclass(frozen=True)
class Cranfield:
    """The collection."""

    documents: list[Document]
    """Abstracts; the source is the number, the text the title and the body."""

    questions: list[str]
    """In file order; judgements name them by position."""

    relevant: list[frozenset[str]]
    """Sources of the relevant documents of each question."""


def load_cranfield(folder: Path) -> Cranfield:
    """Read the collection's three files."""
    records = _records(folder / "cran.all.1400")
    documents = [Document(key, fields["W"] or fields["T"], fields["T"]) for key, fields in records]
    questions = [" ".join(fields["W"].split()) for _, fields in _records(folder / "cran.qry")]
    relevant: list[set[str]] = [set() for _ in questions]
    for line in (folder / "cranqrel").read_text().splitlines():
        question, document, grade = map(int, line.split())
        if grade > 0:
            relevant[question - 1].add(str(document))
    return Cranfield(documents, questions, [frozenset(found) for found in relevant])


def _records(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Split a SMART-format file into records of fields by their letter."""
    records = []
    for block in re.split(r"^\.I ", path.read_text(), flags=re.MULTILINE)[1:]:
        number, _, rest = block.partition("\n")
        parts = re.split(r"^\.([TABW])\n", rest, flags=re.MULTILINE)
        fields: dict[str, str] = {letter: "" for letter in "TABW"}  # noqa: C420 (str, not literals)
        for letter, text in zip(parts[1::2], parts[2::2], strict=True):
            fields[letter] += text.strip()
        records.append((str(int(number)), fields))
    return records


def rank_documents(index: Index, question: str, mode: Mode, limit: int = 10) -> list[str]:
    """Return the sources of the best documents; a document is as good as its best chunk."""
    hits = index.search(question, _POOL, mode=mode)
    return list(dict.fromkeys(hit.doc for hit in hits))[:limit]


def ndcg(ranked: Sequence[str], relevant: frozenset[str], k: int = 10) -> float:
    """Normalised discounted cumulative gain with binary gains (Järvelin, Kekäläinen 2002)."""
    if not relevant:
        return 0.0
    gain = sum(1 / math.log2(at + 2) for at, doc in enumerate(ranked[:k]) if doc in relevant)
    return gain / sum(1 / math.log2(at + 2) for at in range(min(k, len(relevant))))


def mean_ndcg(index: Index, data: Cranfield, mode: Mode) -> float:
    """Return nDCG@10 averaged over the questions."""
    return statistics.mean(
        ndcg(rank_documents(index, question, mode), relevant)
        for question, relevant in zip(data.questions, data.relevant, strict=True)
    )


def measure(data: Cranfield, folder: Path, *, timed: bool) -> dict[str, object]:
    """Index the collection, ask all questions in all modes."""
    speed: dict[str, float] = {}
    with Index(folder) as index:
        began_s = time.perf_counter()
        report = index.add(data.documents)
        index.prepare()
        speed["index_s"] = round(time.perf_counter() - began_s, 1)
        quality = {f"ndcg10_{mode}": round(mean_ndcg(index, data, mode), 4) for mode in MODES}
        for mode in MODES if timed else ():
            times_ms = sorted(_time_ms(index, question, mode) for question in data.questions)
            for name, share in (("p20", 0.2), ("median", 0.5), ("p80", 0.8)):
                speed[f"search_ms_{mode}_{name}"] = round(times_ms[int(share * len(times_ms))], 2)
    return {"chunks": report.chunks, **quality, **(speed if timed else {})}


def _time_ms(index: Index, question: str, mode: Mode) -> float:
    began_s = time.perf_counter()
    index.search(question, 10, mode=mode)
    return 1000 * (time.perf_counter() - began_s)


def main() -> None:
    """Measure, print, and write the row."""
    data = load_cranfield(Path(os.environ["LLMLAB_DATA"]) / "cranfield")
    with tempfile.TemporaryDirectory() as folder:
        timed = "--quality-only" not in sys.argv
        found = measure(data, Path(folder) / "index", timed=timed)
    row = {"dtype": "float32", "documents": len(data.documents), **found}
    print(json.dumps(row, indent=2))
    if "--no-write" not in sys.argv:
        append_row("rag_cranfield", row)


if __name__ == "__main__":
    main()
