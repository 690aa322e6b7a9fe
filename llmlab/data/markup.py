"""The text of an HTML page, with the standard library's parser.

Scripts, styles and templates are dropped; block elements start a new line; runs of blanks become
one, except inside <pre>. Not here: finding the main part of a page.
"""

import re
from html.parser import HTMLParser

_DROPPED = frozenset({"script", "style", "template", "noscript", "svg"})
_BLOCKS = re.compile(
    r"address|article|aside|blockquote|br|d[dlt]|div|figcaption|figure|footer|form|h[1-6]|header|hr|"
    r"li|main|nav|[ou]l|p|pre|section|table|t[dhr]|title"
)


def html_text(page: str) -> str:
    """Return the readable text of a page, entities resolved, one block a line."""
    parser = _TextParser()
    parser.feed(page)
    parser.close()
    return parser.text()


class _TextParser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._pieces: list[str] = []
        self._dropping = 0
        self._pre = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._dropping += tag in _DROPPED
        self._pre += tag == "pre"
        if _BLOCKS.fullmatch(tag):
            self._pieces.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self._dropping = max(0, self._dropping - (tag in _DROPPED))
        self._pre = max(0, self._pre - (tag == "pre"))
        if _BLOCKS.fullmatch(tag):
            self._pieces.append("\n")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if _BLOCKS.fullmatch(tag):
            self._pieces.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._dropping:
            self._pieces.append(data if self._pre else re.sub(r"\s+", " ", data))

    def text(self) -> str:
        text = re.sub(r" *\n *(?=\n)", "\n", "".join(self._pieces))
        text = re.sub(r"[ \t]+\n", "\n", text)
        return re.sub(r"\n{3,}", "\n\n", text).strip()
