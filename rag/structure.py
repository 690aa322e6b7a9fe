"""Where the sections of a document start: Markdown and HTML headings, Python definitions.

Not here: cutting (chunk.py).
"""

import ast
from itertools import accumulate
from pathlib import PurePath

from llmlab.errors import MissingExtraError
from llmlab.rag.documents import Document

try:
    from markdown_it import MarkdownIt
except ImportError as error:
    raise MissingExtraError("markdown_it", "rag") from error

_MARKDOWN = frozenset({".md", ".markdown", ".html", ".htm"})


def is_code(document: Document) -> bool:
    """Tell whether lines, not sentences, are the units of the text."""
    return _suffix(document) == ".py"


def section_starts(document: Document) -> list[int]:
    """Return the offsets of the lines that open a section, ascending; empty for plain text."""
    if _suffix(document) in _MARKDOWN:
        lines = _heading_lines(document.text)
    elif is_code(document):
        lines = _definition_lines(document.text)
    else:
        return []
    offsets = _line_offsets(document.text)
    return sorted({offsets[line] for line in lines if line < len(offsets)})


def _suffix(document: Document) -> str:
    return PurePath(document.source).suffix.lower()


def _heading_lines(text: str) -> list[int]:
    tokens = MarkdownIt("commonmark").parse(text)
    return [token.map[0] for token in tokens if token.type == "heading_open" and token.map]


def _definition_lines(text: str) -> list[int]:
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []  # old or broken code is still text
    definitions = [
        node
        for node in body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    ]
    return [
        min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1 for node in definitions
    ]


def _line_offsets(text: str) -> list[int]:
    return list(accumulate((len(line) + 1 for line in text.split("\n")), initial=0))
