r"""Tables of what each character is: the classes that the compiled scanner tells apart.

Those of the expressions in splits.py are filled by the `regex` package itself, so `\p{L}` means
here what it means there, whatever Unicode version that package carries; those of BERT come from
unicode_tables.py.
"""

from functools import cache

import numpy as np
import numpy.typing as npt
import regex

from llmlab.tokenizers.scan_rules import BERT, ScanRules
from llmlab.tokenizers.unicode_tables import CHINESE, CLEANED_SPACES, PUNCTUATION, ranges

LETTER = 1
NUMBER = 2
SPACE = 4
OTHER = 8  # every character is one of these four
UPPER = 16
LOWER = 32
CASELESS = 64  # other letters, and marks, which are no letters
NEWLINE = 128

NUM_CODE_POINTS = 0x110000

_PROPERTIES = {
    r"\p{L}+": LETTER,
    r"\p{N}+": NUMBER,
    r"\s+": SPACE,
    r"\p{Lu}+": UPPER,
    r"\p{Lt}+": UPPER,
    r"\p{Ll}+": LOWER,
    r"\p{Lm}+": CASELESS,
    r"\p{Lo}+": CASELESS,
    r"\p{M}+": CASELESS,
    r"[\r\n]+": NEWLINE,
}


def classes_for(rules: ScanRules) -> npt.NDArray[np.uint8]:
    """Return the table by which texts are cut under these rules."""
    return _bert_classes() if rules.family == BERT else char_classes()


@cache
def char_classes() -> npt.NDArray[np.uint8]:
    """Return the class bits of every code point, (0x110000,), read-only; made once in 0.05 s."""
    every = np.arange(NUM_CODE_POINTS, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    classes = np.zeros(NUM_CODE_POINTS, np.uint8)
    for expression, bit in _PROPERTIES.items():
        for match in regex.finditer(expression, every):
            classes[match.start() : match.end()] |= bit
    classes[(classes & (LETTER | NUMBER | SPACE)) == 0] |= OTHER
    classes.flags.writeable = False
    return classes


@cache
def _bert_classes() -> npt.NDArray[np.uint8]:
    """Return SPACE for what BERT makes a space, OTHER for what it sets apart, else LETTER."""
    classes = np.full(NUM_CODE_POINTS, LETTER, np.uint8)
    for inside, bit in ((CLEANED_SPACES, SPACE), (PUNCTUATION, OTHER), (CHINESE, OTHER)):
        for points in ranges(inside):
            classes[points.start : points.stop] = bit
    classes.flags.writeable = False
    return classes
