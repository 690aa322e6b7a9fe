"""Rule-based sentence spans with exact offsets; no model, no download.

A sentence ends at `.`, `!`, `?` or their full-width kin, at a blank line, and before a list item,
a heading or a table row. Single line breaks inside prose do not end one. Not here: chunk sizes.
"""

import re

Span = tuple[int, int]
"""Start and end offsets, end exclusive."""

_SHORT_FORMS = """
    al approx ca cf co corp dept dr e.g ed eds eq eqs etc fig figs gen gov i.e inc jr ltd mr mrs ms
    no nos p pp prof ref refs rev sec sen sr st vol vs
"""
_ABBREVIATIONS = frozenset(_SHORT_FORMS.split())

_BREAK = re.compile(
    r"""
      (?P<end>(?<![.!?])[.!?]++["'”’)\]]*+)(?=\s)   # terminator, closing quotes, then blank
    | (?P<wide>[。！？｡]+[」』”’）]*)            # full-width terminators need no blank
    | (?P<blank>\n[ \t\r]*(?=\n))              # blank line
    | (?P<line>\n(?=[ \t]*(?:[-*+•][ \t]|\d+[.)][ \t]|\#{1,6}[ \t]|\||```|~~~)))   # a new block
    | (?P<heading>^[ \t]*\#{1,6}[ \t][^\n]*\n)                            # a heading line ends
    """,
    re.VERBOSE | re.MULTILINE,
)


def sentence_spans(text: str) -> list[Span]:
    """Return the sentences of a text, in order, without the blanks around them.

    Together the spans hold every character that is not white space.
    """
    spans, start = [], 0
    for match in _BREAK.finditer(text):
        if match["end"] and not _ends_sentence(text, match):
            continue
        if match["heading"]:
            spans.append((start, match.start()))
            start = match.start()
        spans.append((start, match.end()))
        start = match.end()
    spans.append((start, len(text)))
    return [span for span in (trim(text, *span) for span in spans) if span[0] < span[1]]


def line_spans(text: str) -> list[Span]:
    """Return the lines of a text that are not blank, without the blanks around them."""
    spans, start = [], 0
    for line in text.splitlines(keepends=True):
        spans.append(trim(text, start, start + len(line)))
        start += len(line)
    return [span for span in spans if span[0] < span[1]]


def trim(text: str, start: int, end: int) -> Span:
    """Return the span without white space at its ends."""
    piece = text[start:end]
    start += len(piece) - len(piece.lstrip())
    return start, max(start, start + len(piece.strip()))


def _ends_sentence(text: str, match: re.Match[str]) -> bool:
    """Tell whether a terminator ends a sentence: not after `Dr.`, `J.`, or before lower case."""
    if match["end"][0] != "." or text[match.start() - 1 : match.start()].isspace():
        return True
    before = text[max(0, match.start() - 20) : match.start()]
    if re.search(r"(?:^|\n)[ \t]*\d+$", before):
        return False  # the number of a list item
    word = before.split()[-1].lstrip("([\"'“‘").casefold() if before.strip() else ""
    if word in _ABBREVIATIONS or (len(word) == 1 and word.isalpha()):
        return False
    after = re.compile(r"\s+[\"'“‘(\[]*(\S)").match(text, match.end())
    return not (after and after[1].islower())
