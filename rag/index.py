"""The index folder: documents go in, passages for a question come out.

Reads and writes `index.sqlite` (store.py) and a derived faiss file (vectors.py). Hybrid search
fuses BM25 and embedding ranks (fuse.py). Not here: language models (pipeline.py).
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self, get_args

from llmlab import rag  # whose load_embedder brings torch with it, once it is called
from llmlab.errors import ConfigError, DataError, RetrievalError, did_you_mean
from llmlab.rag.chunk import check_sizes, chunk_document
from llmlab.rag.config import Mode
from llmlab.rag.documents import Chunk, Document, Hit, text_hash
from llmlab.rag.embedder import Embedder
from llmlab.rag.fuse import fuse
from llmlab.rag.load import document_files, load_file
from llmlab.rag.store import DATABASE, Store
from llmlab.rag.vectors import VectorIndex
from llmlab.rag.words import fts_query
from llmlab.track import OnProgress, silent

_MIN_POOL = 100
_BATCH_CHUNKS = 128


@dataclass(frozen=True)
class IndexReport:
    """What adding documents changed."""

    added: int = 0
    """New documents."""

    updated: int = 0
    """Documents whose text or chunk sizes changed."""

    unchanged: int = 0
    """Documents that were there already."""

    deleted: int = 0
    """Documents whose file is gone."""

    unreadable: int = 0
    """Files that could not be read; reported as notes."""

    chunks: int = 0
    """Chunks written."""

    embedded: int = 0
    """Chunks that went through the embedder; the rest came from the cache."""

    def plus(self, **counts: int) -> "IndexReport":
        """Return a report with some counts raised."""
        return replace(self, **{key: getattr(self, key) + n for key, n in counts.items()})


class Index:
    """Documents cut into passages that can be searched by words and by meaning.

    Use it from the thread that made it. Any number of processes may read while one writes.

    Args:
        path: index folder; a new one is made when it is missing or empty.
        embedder: turns text into vectors; None for the one the index was made with, or for a new
            index all-MiniLM-L6-v2.
        chunk_tokens: longest passage, in tokens of the embedder.
        overlap_tokens: tokens a passage repeats, at most, from the end of the one before it.

    Raises:
        RetrievalError: `path` holds something else, or was made with another embedder.
        ConfigError: the sizes do not fit each other or the embedder.
    """

    def __init__(
        self,
        path: Path | str,
        embedder: Embedder | None = None,
        *,
        chunk_tokens: int = 240,
        overlap_tokens: int = 32,
    ) -> None:
        self.path = Path(path)
        check_sizes(chunk_tokens, overlap_tokens)
        if not is_index(self.path) and self.path.exists() and not _is_empty(self.path):
            raise RetrievalError(f"{self.path} is not an index folder; choose another path")
        self.embedder = embedder or _embedder_of(self.path)
        if chunk_tokens > self.embedder.max_tokens:
            raise ConfigError(
                f"chunk_tokens={chunk_tokens} is more than the {self.embedder.max_tokens} tokens "
                f"that embedder {self.embedder.name} reads; lower it"
            )
        self._sizes = (chunk_tokens, overlap_tokens)
        self._store = Store(self.path, self.embedder.fingerprint)
        self._vectors: VectorIndex | None = None
        self._bind()

    @classmethod
    def open(cls, path: Path | str, embedder: Embedder | None = None) -> Self:
        """Open an index that must be there.

        Raises:
            RetrievalError: there is none, or it was made with another embedder.
        """
        if not is_index(path):
            raise RetrievalError(
                f"{path} is not an index folder; make one with "
                f"`llmlab rag index FOLDER --out {path}`"
            )
        return cls(path, embedder)

    def _bind(self) -> None:
        """Tie a new index to its embedder; refuse another one on an old index."""
        mine, store = self.embedder, self._store
        if store.meta("embedder_fingerprint") is None:
            with store.transaction():
                store.set_meta("embedder_fingerprint", mine.fingerprint)
                store.set_meta("embedder", mine.name)
        theirs = str(store.meta("embedder_fingerprint"))
        if theirs != mine.fingerprint:
            name = store.meta("embedder")
            self.close()
            raise RetrievalError(
                f"index {self.path} was made with embedder {name} ({theirs[:12]}), not "
                f"{mine.name} ({mine.fingerprint[:12]}); open it with the former, or index anew "
                "with --overwrite"
            )

    def close(self) -> None:
        """Close the database."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # Changing it

    def add(
        self, documents: Iterable[Document], *, on_progress: OnProgress = silent
    ) -> IndexReport:
        """Add documents; one with a known source replaces the old one, an equal one costs nothing.

        Documents are committed in groups of about 128 chunks: what was reported is safe, and a
        killed run goes on where it stopped.
        """
        report = IndexReport()
        known = self._store.hashes()
        group: list[tuple[Document, str, list[Chunk]]] = []
        for document in documents:
            digest = self._digest(document)
            if known.get(document.source) == digest:
                report = report.plus(unchanged=1)
                continue
            report = report.plus(**{"updated" if document.source in known else "added": 1})
            known[document.source] = digest
            group.append((document, digest, self.chunk(document)))
            if sum(len(chunks) for _, _, chunks in group) >= _BATCH_CHUNKS:
                report = self._commit(group, report, on_progress)
                group = []
        return self._commit(group, report, on_progress) if group else report

    def add_folder(self, folder: Path | str, *, on_progress: OnProgress = silent) -> IndexReport:
        """Bring the index up to date with a folder: new, changed and vanished files.

        A document's source is the folder's name and the path below it, such as `docs/guide/a.md`,
        so that an index can move between machines. A file that cannot be read is noted and keeps
        what the index has of it.

        Raises:
            DataError: `folder` is not a folder.
            RetrievalError: another existing folder of the same name is in the index.
        """
        root = Path(folder).resolve()
        prefix = f"{root.name}/"
        files = {prefix + p.relative_to(root).as_posix(): p for p in document_files(root)}
        self._claim(root)
        unreadable: list[str] = []

        def documents() -> Iterator[Document]:
            for source, path in files.items():
                try:
                    yield load_file(path, source)
                except DataError as error:
                    unreadable.append(source)
                    on_progress({"note": str(error)})

        report = self.add(documents(), on_progress=on_progress)
        gone = [s for s in self.sources() if s.startswith(prefix) and s not in files]
        deleted = sum(self.delete(source) for source in gone)
        return report.plus(deleted=deleted, unreadable=len(unreadable))

    def delete(self, source: str) -> bool:
        """Remove one document; False when it is not there."""
        with self._store.transaction():
            return self._store.delete(source)

    def compact(self) -> int:
        """Forget cached vectors of texts that are gone; return how many."""
        return self._store.compact()

    def chunk(self, document: Document) -> list[Chunk]:
        """Cut a document the way this index does."""
        size, overlap = self._sizes
        starts = self.embedder.token_starts
        return chunk_document(document, size=size, overlap=overlap, token_starts=starts)

    def _commit(
        self,
        group: list[tuple[Document, str, list[Chunk]]],
        report: IndexReport,
        on_progress: OnProgress,
    ) -> IndexReport:
        texts = {text_hash(chunk.text): chunk.text for _, _, chunks in group for chunk in chunks}
        cached = self._store.vector_ids(texts)
        new = {key: text for key, text in texts.items() if key not in cached}
        vectors = self.embedder.encode(list(new.values()))  # (n, dim)
        with self._store.transaction():
            self._store.put_vectors(list(new), vectors)
            for document, digest, chunks in group:
                self._store.put(document, digest, chunks)
        written = sum(len(chunks) for _, _, chunks in group)
        report = report.plus(chunks=written, embedded=len(new))
        on_progress(
            {
                "documents": report.added + report.updated + report.unchanged,
                "chunks": report.chunks,
                "embedded": report.embedded,
            }
        )
        return report

    def _digest(self, document: Document) -> str:
        """Hash everything that decides what is stored of a document."""
        rest = repr((document.title, document.page_starts, self._sizes)).encode()
        return hashlib.sha256(text_hash(document.text) + rest).hexdigest()

    def _claim(self, root: Path) -> None:
        key = f"folder:{root.name}"
        with self._store.transaction():
            other = self._store.meta(key)
            if other and other != str(root) and Path(other).is_dir():
                raise RetrievalError(
                    f"index {self.path} holds the documents of {other} under the name "
                    f"{root.name!r}; index {root} into another --out, or rename it"
                )
            self._store.set_meta(key, str(root))

    # Asking it

    def search(self, question: str, k: int = 5, *, mode: Mode = "hybrid") -> list[Hit]:
        """Find the passages that fit a question best.

        Args:
            question: any text.
            k: passages wanted.
            mode: `bm25` (words), `dense` (cosine of embeddings) or `hybrid` (both, fused by rank).

        Returns:
            At most `k` hits, best first, with the raw component scores in `Hit.scores`.

        Raises:
            RetrievalError: `k` or `mode` is out of range.
        """
        if k < 1:
            raise RetrievalError(f"k={k} passages cannot be found; ask for 1 or more")
        if mode not in get_args(Mode):
            raise RetrievalError(f"mode={mode!r} is unknown{did_you_mean(mode, get_args(Mode))}")
        pool = max(_MIN_POOL, 4 * k)
        vector = None if mode == "bm25" else self.embedder.encode([question])[0]  # (dim,)
        with self._store.snapshot():
            legs: dict[str, list[tuple[int, float]]] = {}
            query = "" if mode == "dense" else fts_query(question)
            if query:
                legs["bm25"] = self._store.find_words(query, pool)
            if vector is not None:
                legs["dense"] = self._faiss().search(vector, pool)
            scores = fuse(legs)
            best = sorted(scores, key=lambda key: (-scores[key][_KEY[mode]], key))[:k]
            chunks = self._store.chunks(best)
        return [_hit(*chunks[key], scores[key], _KEY[mode]) for key in best]

    def document(self, source: str) -> Document:
        """Return a document with its canonical text.

        Raises:
            RetrievalError: the index has no such document.
        """
        found = self._store.document(source)
        if found is None:
            hint = did_you_mean(source, self.sources()[:1000])
            raise RetrievalError(f"index {self.path} has no document {source!r}{hint}")
        return found

    def sources(self) -> list[str]:
        """Return the sources of all documents, sorted."""
        return sorted(self._store.hashes())

    @property
    def num_documents(self) -> int:
        """Documents in the index."""
        return self._store.counts()[0]

    @property
    def num_chunks(self) -> int:
        """Chunks in the index."""
        return self._store.counts()[1]

    def verify(self) -> None:
        """Check the database, every vector's length and every chunk's place in its document.

        Raises:
            RetrievalError: something is damaged.
        """
        self._store.check(self.embedder.dim)

    def prepare(self) -> None:
        """Build the faiss file now, so that the first question does not wait for it."""
        with self._store.snapshot():
            self._faiss()

    def _faiss(self) -> VectorIndex:
        stamp = self._store.stamp()
        if self._vectors is None or self._vectors.stamp != stamp:
            dim = self.embedder.dim
            self._vectors = VectorIndex(self.path, stamp, dim, lambda: self._store.all_vectors(dim))
        return self._vectors


_KEY: dict[str, str] = {"hybrid": "rrf", "bm25": "bm25", "dense": "dense"}
"""Which score a mode sorts by."""


def is_index(path: Path | str) -> bool:
    """Tell whether a folder holds an index."""
    return (Path(path) / DATABASE).is_file()


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _embedder_of(path: Path) -> Embedder:
    if not is_index(path):
        return rag.load_embedder()
    store = Store(path, "")
    try:
        return rag.load_embedder(store.meta("embedder"), offline=True)
    finally:
        store.close()


def _hit(chunk: Chunk, document: Document, scores: dict[str, float], key: str) -> Hit:
    return Hit(
        doc=chunk.doc,
        start=chunk.start,
        end=chunk.end,
        text=chunk.text,
        title=document.title,
        page=document.page(chunk.start),
        score=scores[key],
        scores=scores,
    )
