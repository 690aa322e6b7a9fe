r"""What the compiled scanner is told about a way to cut text, in five integers.

A split is an expression for readers and for `tokenizers` (splits.py) and these rules for the
scanner (compiled/scanner.py); tests hold the two to the same pieces. Three more ways to cut serve
models that are not byte-level and have no expression in tokenizer.json: white space apart from
the rest, SentencePiece's words, which begin with their space, and BERT's words as they are before
BERT's normaliser.
"""

from typing import NamedTuple

GPT2 = 0
CL100K = 1
O200K = 2
WHITESPACE = 3
METASPACE = 4
BERT = 5


class ScanRules(NamedTuple):
    """How pre-tokens are cut; all fields are integers, so compiled code takes them as they are."""

    family: int
    """Which pieces there are: `GPT2`, `CL100K`, `O200K`, `WHITESPACE`, `METASPACE` or
    `BERT`."""

    max_digits: int = 0
    """Characters of a number in one piece; 0 sets no limit."""

    spaced_numbers: int = 0
    """1 when a space joins the number after it (the family GPT2)."""

    whole_before_numbers: int = 0
    """1 when white space before a number is one piece (the family GPT2)."""

    whole_at_end: int = 0
    """1 when white space at the end of a text is one piece even after a newline (CL100K)."""


WHITESPACE_RULES = ScanRules(WHITESPACE)
r"""Longest runs of `\s` and longest runs of anything else."""

METASPACE_RULES = ScanRules(METASPACE)
"""A piece begins at every U+0020 and nowhere else."""

BERT_RULES = ScanRules(BERT)
"""Runs of white space, single punctuation marks and Chinese characters, and runs of the rest.

Normalising and cutting a text as BERT does gives the pieces that it gives for each of these, side
by side: one of each two neighbours is white space or set apart, both stay what they are, and no
mark moves across either.
"""
