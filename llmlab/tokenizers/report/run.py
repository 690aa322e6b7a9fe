"""Read text once and measure every tokenizer on it, and on the samples of each kind.

Not here: reading sources (the command line does), how the numbers are shown (tables.py, page.py).
"""

import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from llmlab.tokenizers import Tokenizer
from llmlab.tokenizers.report.measures import CutText, Tally, TextMeasures, byte_lens
from llmlab.tokenizers.report.samples import KINDS
from llmlab.tokenizers.report.view import TokenView, view
from llmlab.tokenizers.report.vocabulary import Vocabulary, read_vocabulary
from llmlab.track import OnProgress, silent

YOUR_TEXT = "your text"
"""Name of the sources' text beside the kinds."""

VIEW_CHARS = 600
"""Characters of each kind in the coloured view."""

_BATCH_CHARS = 2**20
_SPEED_BYTES = 2_000_000
_SPEED_RUNS = 3


@dataclass(frozen=True, kw_only=True)
class TokenizerFacts:
    """Everything measured about one tokenizer."""

    name: str
    fingerprint: str
    vocab_size: int
    texts: dict[str, TextMeasures]
    """`YOUR_TEXT`, then each kind of `samples.KINDS`."""

    vocabulary: Vocabulary
    encode_mb_per_s: float
    """10^6 bytes of UTF-8 a second: median of 3 passes over the first 2 MB, after a first one."""

    views: dict[str, TokenView]
    """The tokens of the start of each text."""


@dataclass(frozen=True)
class Report:
    """The tokenizers side by side; the first one is what the report is about."""

    tokenizers: tuple[TokenizerFacts, ...]


def make_report(
    texts: Iterable[str], tokenizers: Mapping[str, Tokenizer], *, on_progress: OnProgress = silent
) -> Report:
    """Measure tokenizers on the same text.

    Args:
        texts: read once, one at a time; at least one. Lone surrogates count as `?`.
        tokenizers: name to tokenizer; the first one is what the report is about.
        on_progress: called with the documents and MB read.
    """
    subjects = [_Subject(name, tokenizer) for name, tokenizer in tokenizers.items()]
    head = _Head()
    num_bytes = documents = 0
    for batch in _batches(head.watch(texts)):
        for subject in subjects:
            subject.tally.add(batch)
        documents += len(batch)
        num_bytes += sum(cut.num_bytes for cut in batch)
        on_progress({"documents": documents, "MB": round(num_bytes / 1e6, 1)})
    return Report(tuple(subject.facts(head) for subject in subjects))


class _Head:
    """The start of the text: what is shown, and what speed is measured on."""

    def __init__(self) -> None:
        self.shown = ""
        self.texts: list[str] = []
        self._room = _SPEED_BYTES

    def watch(self, texts: Iterable[str]) -> Iterator[str]:
        """Yield texts as they are encoded, and keep the first ones."""
        for raw in texts:
            text = raw.encode("utf-8", "replace").decode()
            if len(self.shown) < VIEW_CHARS:
                self.shown += text[: VIEW_CHARS - len(self.shown)]
            if self._room > 0:
                self.texts.append(text[: self._room])
                self._room -= len(self.texts[-1].encode())
            yield text


class _Subject:
    """A tokenizer being measured."""

    def __init__(self, name: str, tokenizer: Tokenizer) -> None:
        self._name, self._tokenizer = name, tokenizer
        self._byte_lens = byte_lens(tokenizer)
        self.tally = Tally(tokenizer, self._byte_lens)

    def facts(self, head: _Head) -> TokenizerFacts:
        """Return everything, after the text was read."""
        return TokenizerFacts(
            name=self._name,
            fingerprint=self._tokenizer.fingerprint,
            vocab_size=self._tokenizer.vocab_size,
            texts={
                YOUR_TEXT: self.tally.measures(),
                **{kind: self._on_sample(text) for kind, text in KINDS.items()},
            },
            vocabulary=read_vocabulary(self._tokenizer, self.tally.counts),
            encode_mb_per_s=_encode_mb_per_s(self._tokenizer, head.texts),
            views={
                kind: view(self._tokenizer, text[:VIEW_CHARS])
                for kind, text in {YOUR_TEXT: head.shown, **KINDS}.items()
            },
        )

    def _on_sample(self, text: str) -> TextMeasures:
        tally = Tally(self._tokenizer, self._byte_lens)
        tally.add([CutText.of(text)])
        return tally.measures()


def _batches(texts: Iterable[str]) -> Iterator[list[CutText]]:
    batch: list[CutText] = []
    chars = 0
    for text in texts:
        batch.append(CutText.of(text))
        chars += len(text)
        if chars >= _BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def _encode_mb_per_s(tokenizer: Tokenizer, texts: list[str]) -> float:
    num_bytes = sum(len(text.encode()) for text in texts)
    seconds = []
    for _ in range(_SPEED_RUNS + 1):
        began_s = time.perf_counter()
        tokenizer.encode_batch_to_arrays(texts)
        seconds.append(time.perf_counter() - began_s)
    return num_bytes / 1e6 / max(statistics.median(seconds[1:]), 1e-9)
