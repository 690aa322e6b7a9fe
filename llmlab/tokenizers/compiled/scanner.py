"""Where pre-tokens end: the expressions of splits.py as loops over UTF-8 bytes.

`piece_end` is the exact twin of a split's expression on any valid UTF-8: it answers what
`regex.match` would, without backtracking, because each expression is a choice by the first one or
two characters and then a run. The classes of characters come from the table of char_classes.py;
the rules say which split (scan_rules.py). Not here: counting (counting.py), merging.
"""

from typing import Any

from llmlab.tokenizers.compiled.char_classes import (
    CASELESS,
    LETTER,
    LOWER,
    NEWLINE,
    NUMBER,
    OTHER,
    SPACE,
    UPPER,
)
from llmlab.tokenizers.compiled.jit import compiled_inner
from llmlab.tokenizers.scan_rules import BERT, CL100K, GPT2, METASPACE, O200K, WHITESPACE

_APOSTROPHE = 0x27
_BLANK = 0x20
_SLASH = 0x2F
_NOTHING = 0  # the class of what lies beyond the end


@compiled_inner
def piece_end(data: Any, start: int, stop: int, classes: Any, rules: Any) -> int:
    """Return where the pre-token that begins at `start` ends.

    Args:
        data: (num_bytes,) uint8, valid UTF-8; always read-only (`np.frombuffer`), as numba
            compiles once for each kind of array.
        start: first byte of the pre-token, below `stop`.
        stop: end of the text; the expression's end of text is here.
        classes: the table of `classes_for(rules)`.
        rules: the `ScanRules` of the split.
    """
    if rules.family == CL100K:
        return _cl100k_end(data, start, stop, classes, rules)
    if rules.family == GPT2:
        return _gpt2_end(data, start, stop, classes, rules)
    if rules.family == O200K:
        return _o200k_end(data, start, stop, classes, rules)
    if rules.family == METASPACE:
        return _next_blank(data, start + 1, stop)
    if rules.family == BERT:
        return _bert_end(data, start, stop, classes)
    return _chunk_end(data, start, stop, classes)


@compiled_inner
def safe_cut(data: Any, start: int, stop: int, classes: Any, rules: Any) -> int:
    """Return the last place where a text may be cut without changing its pre-tokens.

    The pieces of the two sides are those of the whole, whatever follows `stop`: the place is
    where one piece surely ends, and no expression looks at what lies before it, nor does the
    piece before it depend on what comes after. Mostly that is a space after a word; text of one
    kind of character only (a long word, a long number) has no such place.

    Args:
        data: as in `piece_end`.
        start: beginning of the text.
        stop: look before this byte; a boundary between characters.
        classes: as in `piece_end`.
        rules: as in `piece_end`.

    Returns:
        A place after `start` and before `stop`, or `start` when there is none.
    """
    at = _char_before(data, stop, start)
    while at > start:
        before = _char_before(data, at, start)
        left, _ = _class_at(data, before, stop, classes)
        right, _ = _class_at(data, at, stop, classes)
        if _is_cut(rules.family, left, right, data[at]):
            return at
        at = before
    return start


@compiled_inner
def _is_cut(family: int, left: int, right: int, byte: int) -> bool:
    """Whether a piece ends between two characters, given their classes and the right one's byte."""
    if family == METASPACE:
        return byte == _BLANK
    if family == BERT:
        return left != right or left == OTHER
    if left & SPACE:
        if family == WHITESPACE:
            return right & SPACE == 0
        # White space before a word gives it its last character, but never a newline.
        after_newline = left & NEWLINE != 0 and right & SPACE == 0
        return family != GPT2 and after_newline and byte != _SLASH
    if right & SPACE:
        # Newlines may belong to the punctuation before them.
        own = right & NEWLINE == 0 or left & (LETTER | NUMBER) != 0
        return family in (GPT2, WHITESPACE) or own
    if family == WHITESPACE:
        return False
    # After letters; a mark or a contraction may belong to the word.
    return left & LETTER != 0 and right & (LETTER | CASELESS) == 0 and byte != _APOSTROPHE


@compiled_inner
def _gpt2_end(data: Any, start: int, stop: int, classes: Any, rules: Any) -> int:
    if data[start] == _APOSTROPHE:
        end = start + 1 + _contraction(data, start + 1, stop, 0)
        if end > start + 1:
            return end
    kind, at = _class_at(data, start, stop, classes)
    if data[start] == _BLANK:
        joined, after = _class_at(data, at, stop, classes)
        if joined & (LETTER | OTHER) or (joined & NUMBER and rules.spaced_numbers):
            kind, at = joined, after
    if kind & LETTER:
        return _run_end(data, at, stop, classes, LETTER)
    if kind & NUMBER:
        return _number_end(data, at, stop, classes, rules.max_digits)
    if kind & OTHER:
        return _run_end(data, at, stop, classes, OTHER)
    end = _run_end(data, at, stop, classes, SPACE)
    if rules.whole_before_numbers and _class_at(data, end, stop, classes)[0] & NUMBER:
        return end
    return _all_but_last(data, start, end, stop)


@compiled_inner
def _cl100k_end(data: Any, start: int, stop: int, classes: Any, rules: Any) -> int:
    if data[start] == _APOSTROPHE:
        end = start + 1 + _contraction(data, start + 1, stop, 1)
        if end > start + 1:
            return end
    kind, at = _class_at(data, start, stop, classes)
    if kind & LETTER:
        return _run_end(data, at, stop, classes, LETTER)
    if kind & NUMBER:
        return _number_end(data, at, stop, classes, rules.max_digits)
    second, after = _class_at(data, at, stop, classes)
    if second & LETTER and not kind & NEWLINE:
        return _run_end(data, after, stop, classes, LETTER)
    if kind & OTHER or (second & OTHER and data[start] == _BLANK):
        end = _run_end(data, at, stop, classes, OTHER)
        return _run_end(data, end, stop, classes, NEWLINE)
    return _white_space_end(data, start, stop, classes, rules)


@compiled_inner
def _o200k_end(data: Any, start: int, stop: int, classes: Any, rules: Any) -> int:
    kind, at = _class_at(data, start, stop, classes)
    if not kind & (NUMBER | NEWLINE):
        end = _o200k_word_end(data, start, at, kind, stop, classes)
        if end > start:
            return _with_contraction(data, end, stop)
    if kind & NUMBER:
        return _number_end(data, at, stop, classes, rules.max_digits)
    second, _ = _class_at(data, at, stop, classes)
    if kind & OTHER or (second & OTHER and data[start] == _BLANK):
        end = _run_end(data, at, stop, classes, OTHER)
        while end < stop and (data[end] == _SLASH or classes[data[end]] & NEWLINE):
            end += 1
        return end
    return _white_space_end(data, start, stop, classes, rules)


@compiled_inner
def _o200k_word_end(data: Any, start: int, at: int, kind: int, stop: int, classes: Any) -> int:
    """Return the end of the word with at most one other character before it, or `start`."""
    first = start if kind & LETTER else at
    end, upper_end = _cased_end(data, first, stop, classes)
    if end == first and kind & CASELESS and not kind & LETTER:
        return at  # a mark is both: what may stand before a word, and a word
    return end if end > first else (upper_end if upper_end > first else start)


@compiled_inner
def _cased_end(data: Any, first: int, stop: int, classes: Any) -> tuple[int, int]:
    """Return the end of `upper* lower+` (or `first`), and of `upper*` alone.

    Other letters and marks are both. Where no lower letter follows, the run gives back its last
    characters until one that can be the lower part.
    """
    at = first
    last_both = first
    while at < stop:
        kind, after = _class_at(data, at, stop, classes)
        if not kind & (UPPER | CASELESS):
            break
        at = after
        if kind & CASELESS:
            last_both = at
    if _class_at(data, at, stop, classes)[0] & LOWER:
        return _run_end(data, at, stop, classes, LOWER | CASELESS), at
    return last_both, at


@compiled_inner
def _with_contraction(data: Any, at: int, stop: int) -> int:
    if at < stop and data[at] == _APOSTROPHE:
        length = _contraction(data, at + 1, stop, 1)
        return at + 1 + length if length else at
    return at


@compiled_inner
def _white_space_end(data: Any, start: int, stop: int, classes: Any, rules: Any) -> int:
    """End white space after its last newline; without one, before what joins the next word."""
    end = start
    newline_end = start
    while end < stop:
        kind, after = _class_at(data, end, stop, classes)
        if not kind & SPACE:
            break
        end = after
        if kind & NEWLINE:
            newline_end = end
    if end == stop and rules.whole_at_end:
        return end
    if newline_end > start:
        return newline_end
    return _all_but_last(data, start, end, stop)


@compiled_inner
def _all_but_last(data: Any, start: int, end: int, stop: int) -> int:
    """Leave the last of several white space characters to the word that follows, if one does."""
    if end == stop:
        return end
    last = _char_before(data, end, start)
    return last if last > start else end


@compiled_inner
def _chunk_end(data: Any, start: int, stop: int, classes: Any) -> int:
    kind, at = _class_at(data, start, stop, classes)
    if kind & SPACE:
        return _run_end(data, at, stop, classes, SPACE)
    return _run_end(data, at, stop, classes, LETTER | NUMBER | OTHER)


@compiled_inner
def _bert_end(data: Any, start: int, stop: int, classes: Any) -> int:
    kind, at = _class_at(data, start, stop, classes)
    return at if kind == OTHER else _run_end(data, at, stop, classes, kind)


@compiled_inner
def _next_blank(data: Any, at: int, stop: int) -> int:
    while at < stop and data[at] != _BLANK:
        at += 1
    return at


@compiled_inner
def _run_end(data: Any, at: int, stop: int, classes: Any, wanted: int) -> int:
    """Return the end of the longest run of characters of these classes."""
    while at < stop:
        byte = data[at]
        if byte < 0x80:
            if not classes[byte] & wanted:
                return at
            at += 1
        else:
            kind, after = _class_at(data, at, stop, classes)
            if not kind & wanted:
                return at
            at = after
    return at


@compiled_inner
def _number_end(data: Any, at: int, stop: int, classes: Any, max_digits: int) -> int:
    """Return the end of a number whose first character ends at `at`."""
    if max_digits == 0:
        return _run_end(data, at, stop, classes, NUMBER)
    for _ in range(max_digits - 1):
        kind, after = _class_at(data, at, stop, classes)
        if not kind & NUMBER:
            break
        at = after
    return at


@compiled_inner
def _contraction(data: Any, at: int, stop: int, any_case: int) -> int:
    """Return the bytes of `s t re ve m ll d` after an apostrophe, 0 when it is none of them.

    In any case `s` is also U+017F (long s), whose capital is `S`.
    """
    first = _lowered(data, at, stop, any_case)
    if first == ord("s") or first == ord("t") or first == ord("m") or first == ord("d"):
        return 1
    second = _lowered(data, at + 1, stop, any_case)
    if (first == ord("r") or first == ord("v")) and second == ord("e"):
        return 2
    if first == ord("l") and second == ord("l"):
        return 2
    if any_case and first == 0xC5 and second == 0xBF:
        return 2
    return 0


@compiled_inner
def _lowered(data: Any, at: int, stop: int, any_case: int) -> int:
    if at >= stop:
        return 0
    byte = data[at]
    return byte | 0x20 if any_case and 0x41 <= byte <= 0x5A else byte


@compiled_inner
def _class_at(data: Any, at: int, stop: int, classes: Any) -> tuple[int, int]:
    """Return the class of the character at `at` and where it ends; beyond the end, no class."""
    if at >= stop:
        return _NOTHING, at
    byte = data[at]
    if byte < 0x80:
        return classes[byte], at + 1
    if byte < 0xE0:
        return classes[(byte & 0x1F) << 6 | (data[at + 1] & 0x3F)], at + 2
    if byte < 0xF0:
        point = (byte & 0x0F) << 12 | (data[at + 1] & 0x3F) << 6 | (data[at + 2] & 0x3F)
        return classes[point], at + 3
    point = (byte & 0x07) << 18 | (data[at + 1] & 0x3F) << 12
    return classes[point | (data[at + 2] & 0x3F) << 6 | (data[at + 3] & 0x3F)], at + 4


@compiled_inner
def _char_before(data: Any, at: int, start: int) -> int:
    """Return where the character that ends at `at` begins, not before `start`."""
    at -= 1
    while at > start and data[at] & 0xC0 == 0x80:
        at -= 1
    return at
