"""Files to documents: txt, md, html, py and pdf to one canonical text each.

txt, md and py keep their text as it is, so offsets hold for `path.read_text(encoding="utf-8")`.
HTML becomes Markdown-like text (headings as `#` lines, <pre> fenced); a PDF becomes its pages'
text, a blank line between pages, and remembers where they start. Not here: cutting (chunk.py).
"""

import logging
import os
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

from llmlab.errors import DataError, MissingExtraError
from llmlab.rag.documents import Document

try:
    import pypdf
    from pypdf.errors import PyPdfError
except ImportError as error:
    raise MissingExtraError("pypdf", "rag") from error

_LOG = logging.getLogger(__name__)


def document_files(folder: Path | str) -> Iterator[Path]:
    """Yield the readable files of a folder, sorted, without hidden ones.

    Raises:
        DataError: `folder` is not a folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give a folder with {suffixes()} files")
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in _READERS:
                yield Path(place, name)


def load_file(path: Path | str, source: str | None = None) -> Document:
    """Read one file.

    Args:
        path: a file with one of the known suffixes.
        source: name of the document; the path when None.

    Raises:
        DataError: the suffix is unknown, or the file cannot be read.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path} has an unknown suffix {path.suffix!r}; known: {suffixes()}")
    try:
        return reader(path, source or path.as_posix())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; check the path") from error


def suffixes() -> str:
    """Return the known suffixes as a list for people."""
    return ", ".join(sorted(_READERS))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        _LOG.warning("%s is not UTF-8 (byte %d); bad bytes read as U+FFFD", path, error.start)
        return path.read_text(encoding="utf-8", errors="replace")


def _load_plain(path: Path, source: str) -> Document:
    return Document(source, _read_text(path), title=path.name)


def _load_markdown(path: Path, source: str) -> Document:
    text = _read_text(path)
    heading = re.search(r"^#{1,6}[ \t]+(.+?)[ \t#]*$", text, re.MULTILINE)
    return Document(source, text, title=heading[1] if heading else path.name)


def _load_html(path: Path, source: str) -> Document:
    parser = _HtmlText()
    parser.feed(_read_text(path))
    parser.close()
    return Document(source, parser.text(), title=parser.title() or path.name)


def _load_pdf(path: Path, source: str) -> Document:
    try:
        reader = pypdf.PdfReader(path)
        # A PDF may map glyphs to lone surrogates; those become U+FFFD.
        pages = [_well_formed(page.extract_text().strip()) for page in reader.pages]
        title = reader.metadata.title if reader.metadata else None
    except (PyPdfError, ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise DataError(f"cannot read {path} as PDF: {error}; decrypt or re-export it") from error
    if not any(pages):
        raise DataError(f"{path} holds no text, only pictures; run text recognition on it first")
    starts, offset = [], 0
    for page in pages:
        starts.append(offset)
        offset += len(page) + 2
    return Document(source, "\n\n".join(pages), str(title or path.name), tuple(starts))


def _well_formed(text: str) -> str:
    return text.encode("utf-8", errors="replace").decode("utf-8")


_READERS: dict[str, Callable[[Path, str], Document]] = {
    ".htm": _load_html,
    ".html": _load_html,
    ".markdown": _load_markdown,
    ".md": _load_markdown,
    ".pdf": _load_pdf,
    ".py": _load_plain,
    ".txt": _load_plain,
}

_DROPPED = frozenset({"script", "style", "template", "noscript", "svg", "nav"})
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_BLOCK_TAGS = """
    address article aside blockquote br dd div dl dt figure footer form header hr li main ol p pre
    section table title tr ul
"""
_BLOCKS = frozenset(_BLOCK_TAGS.split())


class _HtmlText(HTMLParser):
    """Collects the readable text of a page as Markdown-like text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._pieces: list[str] = []
        self._title: list[str] = []
        self._dropping = 0
        self._pre = 0
        self._in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "title":
            self._in_title = True
        self._dropping += tag in _DROPPED
        self._pre += tag == "pre"
        if tag in _HEADINGS:
            self._pieces.append(f"\n\n{'#' * _HEADINGS[tag]} ")
        elif tag == "pre":
            self._pieces.append("\n\n```\n")
        elif tag == "li":
            self._pieces.append("\n- ")
        elif tag in _BLOCKS:
            self._pieces.append("\n" if tag in ("br", "tr") else "\n\n")
        elif tag in ("td", "th"):
            self._pieces.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self._in_title = False
        self._dropping = max(0, self._dropping - (tag in _DROPPED))
        self._pre = max(0, self._pre - (tag == "pre"))
        if tag == "pre":
            self._pieces.append("\n```\n\n")
        elif tag in _HEADINGS or (tag in _BLOCKS and tag not in ("li", "tr", "br")):
            self._pieces.append("\n\n")

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self._title.append(data)
        elif not self._dropping:
            piece = data if self._pre else self._flowed(data)
            self._pieces += [piece] if piece else []

    def _flowed(self, data: str) -> str:
        data = re.sub(r"\s+", " ", data)
        after_space = not self._pieces or self._pieces[-1][-1:].isspace()
        return data.lstrip() if after_space else data

    def title(self) -> str:
        return " ".join("".join(self._title).split())

    def text(self) -> str:
        text = re.sub(r"[ \t]+\n", "\n", "".join(self._pieces))
        return re.sub(r"\n{3,}", "\n\n", text).strip()
