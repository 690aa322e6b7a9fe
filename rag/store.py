"""The SQLite database of an index: documents, chunks, vectors and the full-text index.

One file in WAL mode is the truth; every change is one transaction, so a killed writer leaves the
state before or after it. Vectors are keyed by (embedder fingerprint, text hash): they are also the
cache that makes re-adding an unchanged text free. Not here: embedding, ranking, the faiss file.
"""

import json
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from llmlab.errors import RetrievalError
from llmlab.rag.documents import Chunk, Document, text_hash

DATABASE = "index.sqlite"
"""File name inside an index folder."""

_FORMAT = 1
_SETTINGS = ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON")
_BUSY_S = 30.0
_FIXES = {
    "locked": "another process writes it; try again",
    "readonly": "make the folder writable, SQLite's log lies in it",
    "unable to open": "make the folder writable, SQLite's log lies in it",
    "full": "free some space",
}
_REBUILD = "index anew with --overwrite"
_MAX_PARAMETERS = 500  # of one statement; SQLite's own limit is higher

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE documents (
    id INTEGER PRIMARY KEY,
    source TEXT NOT NULL UNIQUE,
    title TEXT NOT NULL,
    text TEXT NOT NULL,
    page_starts TEXT NOT NULL,
    hash TEXT NOT NULL
);
CREATE TABLE vectors (
    id INTEGER PRIMARY KEY,
    embedder TEXT NOT NULL,
    text_hash BLOB NOT NULL,
    vector BLOB NOT NULL,
    UNIQUE (embedder, text_hash)
);
CREATE TABLE chunks (
    id INTEGER PRIMARY KEY,
    document_id INTEGER NOT NULL REFERENCES documents,
    start INTEGER NOT NULL,
    end INTEGER NOT NULL,
    text TEXT NOT NULL,
    vector_id INTEGER NOT NULL REFERENCES vectors
);
CREATE INDEX chunks_of_document ON chunks (document_id);
CREATE INDEX chunks_of_vector ON chunks (vector_id);
CREATE VIRTUAL TABLE words USING fts5(
    text, content='chunks', content_rowid='id', tokenize='porter unicode61'
);
CREATE TRIGGER chunks_in AFTER INSERT ON chunks BEGIN
    INSERT INTO words (rowid, text) VALUES (new.id, new.text);
END;
CREATE TRIGGER chunks_out AFTER DELETE ON chunks BEGIN
    INSERT INTO words (words, rowid, text) VALUES ('delete', old.id, old.text);
END;
"""


class Store:
    """Statements on the database of one index folder. Use it from the thread that made it.

    Args:
        folder: the index folder; made when missing.
        embedder: fingerprint whose vectors are read and written.

    Raises:
        RetrievalError: the database is of another format, or cannot be read.
    """

    def __init__(self, folder: Path, embedder: str) -> None:
        self.path = folder / DATABASE
        self._embedder = embedder
        folder.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None)
        try:
            with self._errors():
                for setting in _SETTINGS:
                    self._db.execute(f"PRAGMA {setting}")
            if self._version() == 0:
                self._create()
            if self._version() != _FORMAT:
                raise RetrievalError(
                    f"{self.path} has format {self._version()}, this llmlab reads {_FORMAT}; "
                    "index it anew with --overwrite"
                )
        except RetrievalError:
            self._db.close()
            raise

    def _version(self) -> int:
        return self._rows("PRAGMA user_version")[0][0]

    def _create(self) -> None:
        with self.transaction():
            if self._version() != 0:
                return  # another process was faster
            for statement in _statements(_SCHEMA):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {_FORMAT}")
            self.set_meta("index_id", secrets.token_hex(8))
            self.set_meta("generation", "0")

    def close(self) -> None:
        """Close the database; a last close folds the write-ahead log into it."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Write all of the block or nothing, alone among writers."""
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Read one state of the database, whatever others write meanwhile."""
        with self._errors():
            self._db.execute("BEGIN")
            try:
                yield
            finally:
                self._db.execute("ROLLBACK")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            fix = next((fix for word, fix in _FIXES.items() if word in str(error)), _REBUILD)
            raise RetrievalError(f"cannot use index {self.path}: {error}; {fix}") from error

    def _rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._errors():
            return self._db.execute(statement, values).fetchall()

    # Settings

    def meta(self, key: str) -> str | None:
        """Return one setting."""
        rows = self._rows("SELECT value FROM meta WHERE key = ?", (key,))
        return rows[0][0] if rows else None

    def set_meta(self, key: str, value: str) -> None:
        """Write one setting."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def stamp(self) -> str:
        """Return a name for the present contents; every change of the chunks makes a new one."""
        return f"{self.meta('index_id')}-{self.meta('generation')}"

    def _advance(self) -> None:
        self._db.execute(
            "UPDATE meta SET value = CAST(value AS INTEGER) + 1 WHERE key = 'generation'"
        )

    # Documents

    def hashes(self) -> dict[str, str]:
        """Return the hash of each document by its source."""
        return dict(self._rows("SELECT source, hash FROM documents"))

    def document(self, source: str) -> Document | None:
        """Return one document."""
        rows = self._rows(
            "SELECT text, title, page_starts FROM documents WHERE source = ?", (source,)
        )
        for text, title, pages in rows:
            return Document(source, text, title, tuple(json.loads(pages)))
        return None

    def delete(self, source: str) -> bool:
        """Remove a document and its chunks; False when it is not there. Vectors stay cached."""
        row = self._db.execute("SELECT id FROM documents WHERE source = ?", (source,)).fetchone()
        if row is None:
            return False
        self._db.execute("DELETE FROM chunks WHERE document_id = ?", row)
        self._db.execute("DELETE FROM documents WHERE id = ?", row)
        self._advance()
        return True

    def put(self, document: Document, digest: str, chunks: Sequence[Chunk]) -> None:
        """Add or replace a document; the vectors of its chunks must be there."""
        self.delete(document.source)
        pages = json.dumps(document.page_starts)
        cursor = self._db.execute(
            "INSERT INTO documents (source, title, text, page_starts, hash) VALUES (?, ?, ?, ?, ?)",
            (document.source, document.title, document.text, pages, digest),
        )
        vectors = self.vector_ids(text_hash(chunk.text) for chunk in chunks)
        self._db.executemany(
            "INSERT INTO chunks (document_id, start, end, text, vector_id) VALUES (?, ?, ?, ?, ?)",
            [
                (cursor.lastrowid, c.start, c.end, c.text, vectors.get(text_hash(c.text)))
                for c in chunks
            ],
        )
        self._advance()

    # Vectors

    def vector_ids(self, hashes: Iterable[bytes]) -> dict[bytes, int]:
        """Return the row ids of the vectors that are there, by text hash."""
        wanted, found = list(set(hashes)), {}
        for at in range(0, len(wanted), _MAX_PARAMETERS):
            part = wanted[at : at + _MAX_PARAMETERS]
            rows = self._rows(
                "SELECT text_hash, id FROM vectors WHERE embedder = ? "
                f"AND text_hash IN ({','.join('?' * len(part))})",
                (self._embedder, *part),
            )
            found.update(dict(rows))
        return found

    def put_vectors(self, hashes: Sequence[bytes], vectors: np.ndarray) -> None:
        """Add vectors `(n, dim)`; those that are there stay."""
        rows = vectors.astype("<f4", copy=False)
        self._db.executemany(
            "INSERT OR IGNORE INTO vectors (embedder, text_hash, vector) VALUES (?, ?, ?)",
            [(self._embedder, h, row.tobytes()) for h, row in zip(hashes, rows, strict=True)],
        )

    def all_vectors(self, dim: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the chunk ids `(n,)` int64 and their vectors `(n, dim)` float32."""
        rows = self._rows(
            "SELECT chunks.id, vector FROM chunks JOIN vectors ON vectors.id = vector_id "
            "ORDER BY chunks.id"
        )
        ids = np.asarray([row[0] for row in rows], dtype=np.int64)
        vectors = np.frombuffer(b"".join(row[1] for row in rows), dtype="<f4")
        return ids, vectors.reshape(len(rows), dim)

    # Chunks

    def find_words(self, query: str, limit: int) -> list[tuple[int, float]]:
        """Return chunk ids and BM25 scores (higher is better), best first."""
        rows = self._rows(
            "SELECT rowid, -bm25(words) AS score FROM words WHERE words MATCH ? "
            "ORDER BY score DESC, rowid LIMIT ?",
            (query, limit),
        )
        return [(chunk_id, score) for chunk_id, score in rows]

    def chunks(self, ids: Sequence[int]) -> dict[int, tuple[Chunk, Document]]:
        """Return chunks by id, each with its document without the text."""
        found = {}
        for at in range(0, len(ids), _MAX_PARAMETERS):
            part = ids[at : at + _MAX_PARAMETERS]
            rows = self._rows(
                "SELECT chunks.id, start, end, chunks.text, source, title, page_starts "
                "FROM chunks JOIN documents ON documents.id = document_id "
                f"WHERE chunks.id IN ({','.join('?' * len(part))})",
                part,
            )
            for key, start, end, text, source, title, pages in rows:
                document = Document(source, "", title, tuple(json.loads(pages)))
                found[key] = (Chunk(source, start, end, text), document)
        return found

    def counts(self) -> tuple[int, int]:
        """Return the numbers of documents and chunks."""
        documents, chunks = self._rows(
            "SELECT (SELECT COUNT(*) FROM documents), (SELECT COUNT(*) FROM chunks)"
        )[0]
        return documents, chunks

    # Care

    def compact(self) -> int:
        """Forget cached vectors that no chunk uses, give the space back; return how many."""
        with self.transaction():
            removed = self._db.execute(
                "DELETE FROM vectors WHERE id NOT IN (SELECT vector_id FROM chunks)"
            ).rowcount
        with self._errors():
            self._db.execute("VACUUM")
        return removed

    def check(self, dim: int) -> None:
        """Raise RetrievalError unless the database is sound and every chunk is where it says."""
        with self._errors():
            problems = [row[0] for row in self._db.execute("PRAGMA integrity_check")]
            problems += map(str, self._db.execute("PRAGMA foreign_key_check"))
            self._db.execute("INSERT INTO words (words, rank) VALUES ('integrity-check', 1)")
            wrong = self._db.execute(
                "SELECT COUNT(*) FROM vectors WHERE length(vector) <> ?", (4 * dim,)
            ).fetchone()
            moved = sum(
                document[start:end] != text
                for document, start, end, text in self._db.execute(
                    "SELECT documents.text, start, end, chunks.text "
                    "FROM chunks JOIN documents ON documents.id = document_id"
                )
            )
        if problems != ["ok"] or wrong[0] or moved:
            raise RetrievalError(
                f"{self.path} is damaged: {'; '.join(problems)}, {wrong[0]} vectors of a wrong "
                f"length, {moved} chunks off their place; index anew with --overwrite"
            )


def _statements(script: str) -> Iterator[str]:
    """Split a script, since `executescript` would commit the transaction it runs in."""
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""
