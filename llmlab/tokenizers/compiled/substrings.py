"""Frequent substrings of words: the pieces that training a Unigram model starts from.

The suffixes of all words are sorted; suffixes that begin alike then lie side by side, and each
such stretch is a substring with how often it occurs, every word counted as often as it was seen.
Only substrings that some longer one does not cover at each of their places are of interest: where
the stretch of a longer prefix is shorter. Not here: what is made of them (../trainers/unigram.py).

Source: Abouelhoda, Kurtz and Ohlebusch, "Replacing suffix trees with enhanced suffix arrays",
2004; sorting by Bentley and Sedgewick, "Fast algorithms for sorting and searching strings", 1997.
"""

from typing import Any

import numpy as np

from llmlab.tokenizers.compiled.jit import compiled, compiled_inner

_KEY_BYTES = 8
_BYTE_BITS = np.uint64(8)
_TOP_SHIFT = np.uint64(56)
_BUCKET_SHIFT = np.uint64(48)
_LAST_BYTE = np.uint64(0xFF)
_CONTINUATION_MASK, _CONTINUATION = np.uint64(0xC0), np.uint64(0x80)
_NUM_BUCKETS = 2**16
_SMALL = 12
"""Fewer suffixes than this are sorted by insertion."""

MAX_SCORE = 2**16
"""Scores are told apart below this; all above are kept."""


@compiled
def suffix_keys(text: Any) -> Any:
    """Return the first eight bytes of each suffix as a number, zeros behind its end: uint64."""
    keys = np.zeros(text.size + _KEY_BYTES, np.uint64)
    key = np.uint64(0)
    for at in range(text.size - 1, -1, -1):
        if text[at] == 0:
            key = np.uint64(0)
        else:
            key = key >> _BYTE_BITS | np.uint64(text[at]) << _TOP_SHIFT
        keys[at] = key
    return keys


@compiled
def suffix_buckets(text: Any, keys: Any) -> Any:
    """Return the suffixes that start at a character, by their first two bytes.

    Returns:
        int32 places in the text, and (2^16 + 1,) int64 where each pair of bytes begins.
    """
    bounds = np.zeros(_NUM_BUCKETS + 1, np.int64)
    for at in range(text.size):
        if _starts_char(text[at]):
            bounds[np.int64(keys[at] >> _BUCKET_SHIFT) + 1] += 1
    for bucket in range(_NUM_BUCKETS):
        bounds[bucket + 1] += bounds[bucket]
    filled = bounds.copy()
    order = np.empty(bounds[-1], np.int32)
    for at in range(text.size):
        if _starts_char(text[at]):
            bucket = np.int64(keys[at] >> _BUCKET_SHIFT)
            order[filled[bucket]] = at
            filled[bucket] += 1
    return order, bounds


@compiled_inner
def _starts_char(byte: int) -> bool:
    return byte != 0 and byte & 0xC0 != 0x80


@compiled
def sort_suffixes(
    keys: Any, order: Any, bounds: Any, first: int, last: int, max_chars: int
) -> None:
    """Sort the suffixes of some buckets by their first `max_chars` characters, or a few more.

    Args:
        keys: of `suffix_keys`.
        order: of `suffix_buckets`, like `bounds`; sorted in place.
        bounds: where each bucket begins.
        first: the first bucket sorted here.
        last: one past the last bucket sorted here.
        max_chars: what lies behind need not be in order.
    """
    largest = 0
    for bucket in range(first, last):
        largest = max(largest, bounds[bucket + 1] - bounds[bucket])
    cache = np.empty(largest, np.uint64)
    stack = np.empty((largest // 2 + 3, 4), np.int32)
    for bucket in range(first, last):
        _sort(keys, order, cache, stack, bounds[bucket], bounds[bucket + 1], max_chars)


@compiled_inner
def _sort(
    keys: Any, order: Any, cache: Any, stack: Any, first: int, last: int, max_chars: int
) -> None:
    """Sort one bucket: quicksort in three parts on eight bytes at a time.

    `cache` holds the keys side by side, `stack` (from, to, bytes alike before, characters alike).
    """
    _load(keys, order, cache, first, 0, last - first, 0)
    height = _push(stack, 0, 0, last - first, 0, 0)
    while height > 0:
        height -= 1
        low, high = np.int64(stack[height, 0]), np.int64(stack[height, 1])
        depth, chars = np.int64(stack[height, 2]), np.int64(stack[height, 3])
        if high - low < _SMALL:
            _insert(keys, order, cache, first, low, high, depth, 4 * max_chars)
            continue
        less, greater = _partition(order, cache, first, low, high)
        height = _push(stack, height, low, less, depth, chars)
        height = _push(stack, height, greater, high, depth, chars)
        key = cache[less]
        chars += _chars_in(key)
        if key & _LAST_BYTE != 0 and chars < max_chars and greater - less > 1:
            _load(keys, order, cache, first, less, greater, depth + _KEY_BYTES)
            height = _push(stack, height, less, greater, depth + _KEY_BYTES, chars)


@compiled_inner
def _push(stack: Any, height: int, low: int, high: int, depth: int, chars: int) -> int:
    if high - low < 2:
        return height
    stack[height, 0], stack[height, 1] = low, high
    stack[height, 2], stack[height, 3] = depth, chars
    return height + 1


@compiled_inner
def _chars_in(key: np.uint64) -> int:
    """Return how many characters start in eight bytes."""
    count = 0
    for _ in range(_KEY_BYTES):
        count += key & _CONTINUATION_MASK != _CONTINUATION
        key = key >> _BYTE_BITS
    return count


@compiled_inner
def _load(keys: Any, order: Any, cache: Any, first: int, low: int, high: int, depth: int) -> None:
    for at in range(low, high):
        cache[at] = keys[order[first + at] + depth]


@compiled_inner
def _partition(order: Any, cache: Any, first: int, low: int, high: int) -> tuple[int, int]:
    """Bring smaller keys before the pivot's equals and larger ones behind; return their bounds."""
    a, b, c = cache[low], cache[(low + high) // 2], cache[high - 1]
    pivot = max(min(a, b), min(max(a, b), c))
    less, at, greater = low, low, high
    while at < greater:
        key = cache[at]
        if key < pivot:
            _swap(order, cache, first, less, at)
            less += 1
            at += 1
        elif key > pivot:
            greater -= 1
            _swap(order, cache, first, at, greater)
        else:
            at += 1
    return less, greater


@compiled_inner
def _swap(order: Any, cache: Any, first: int, a: int, b: int) -> None:
    cache[a], cache[b] = cache[b], cache[a]
    order[first + a], order[first + b] = order[first + b], order[first + a]


@compiled_inner
def _insert(
    keys: Any, order: Any, cache: Any, first: int, low: int, high: int, depth: int, max_bytes: int
) -> None:
    for end in range(low + 1, high):
        at = end
        while at > low and _is_before(keys, order, cache, first + at, at, depth, max_bytes):
            _swap(order, cache, first, at - 1, at)
            at -= 1


@compiled_inner
def _is_before(
    keys: Any, order: Any, cache: Any, place: int, at: int, depth: int, max_bytes: int
) -> bool:
    """Whether a suffix belongs before the one to its left."""
    left, right = cache[at - 1], cache[at]
    while left == right and right & _LAST_BYTE != 0 and depth + _KEY_BYTES < max_bytes:
        depth += _KEY_BYTES
        left, right = keys[order[place - 1] + depth], keys[order[place] + depth]
    return right < left


@compiled
def shared_bytes(text: Any, order: Any, first: int, last: int, max_chars: int, out: Any) -> None:
    """Note how many bytes each sorted suffix shares with the one before it.

    Whole characters only, and at most `max_chars` of them.

    Args:
        text: (bytes,) uint8, words with zeros between.
        order: (n,) int32: the sorted suffixes.
        first: the first suffix looked at here.
        last: one past the last suffix looked at here.
        max_chars: longer substrings are not of interest.
        out: (n + 1,) uint16; receives the lengths; the first and last are 0.
    """
    for rank in range(max(first, 1), last):
        a, b = order[rank - 1], order[rank]
        length, whole, chars = 0, 0, 0
        while True:
            byte = text[a + length]
            if byte & 0xC0 != 0x80:
                whole = length
                if chars == max_chars:
                    break
                chars += 1
            if byte == 0 or byte != text[b + length]:
                break
            length += 1
        out[rank] = whole


@compiled
def score_histogram(
    text: Any,
    owners: Any,
    counts: Any,
    order: Any,
    shared: Any,
    max_chars: int,
    min_count: int,
    first: int,
    last: int,
) -> Any:
    """Return how many substrings have each score, (MAX_SCORE + 1,) int64; see `substrings`."""
    histogram = np.zeros(MAX_SCORE + 1, np.int64)
    stack, found = np.empty((max_chars + 2, 3), np.int64), np.empty((0, 3), np.int64)
    limits = (max_chars, min_count, MAX_SCORE)
    _walk(text, owners, counts, order, shared, limits, first, last, stack, histogram, found)
    return histogram


@compiled
def substrings(
    text: Any,
    owners: Any,
    counts: Any,
    order: Any,
    shared: Any,
    max_chars: int,
    min_count: int,
    first: int,
    last: int,
    min_score: int,
    num_found: int,
) -> Any:
    """Return every character, and the substrings of two and more with a sufficient score.

    The score of a substring is its count times its characters.

    Args:
        text: (bytes,) uint8, words with zeros between.
        owners: (bytes,) int32: which word each byte belongs to.
        counts: (num_words,) int64: how often each was seen.
        order: (n,) int32: the sorted suffixes.
        shared: (n + 1,) uint16, of `shared_bytes`.
        max_chars: characters of the longest substring.
        min_count: occurrences of the rarest one.
        first: the first suffix looked at here; the one before begins with another character.
        last: one past the last suffix looked at here, the same holds for it.
        min_score: the least score, 1 or more.
        num_found: a bound on how many come back.

    Returns:
        (m, 3) int64: rank of a suffix that starts with it, its bytes, its score (0 for a
        character), in no order.
    """
    histogram = np.empty(0, np.int64)
    stack, found = np.empty((max_chars + 2, 3), np.int64), np.empty((num_found, 3), np.int64)
    limits = (max_chars, min_count, min_score)
    count = _walk(text, owners, counts, order, shared, limits, first, last, stack, histogram, found)
    return found[:count]


@compiled_inner
def _walk(
    text: Any,
    owners: Any,
    counts: Any,
    order: Any,
    shared: Any,
    limits: tuple[int, int, int],
    begin: int,
    end: int,
    stack: Any,
    histogram: Any,
    found: Any,
) -> int:
    """Go through the sorted suffixes with a stack of the substrings that are open.

    An entry of the stack is (rank of its first suffix, bytes, words counted before it).
    """
    max_chars, min_count, min_score = limits
    stack[0, 0] = stack[0, 1] = stack[0, 2] = 0
    height, seen, num_found = 1, np.int64(0), 0
    for rank in range(begin, end):
        at, before, after = order[rank], np.int64(shared[rank]), np.int64(shared[rank + 1])
        if before == 0:
            num_found = _note(found, num_found, rank, _end(text, at, 1), 0)
        count = counts[owners[at]]
        length = _end(text, at, max_chars) if count >= min_count else 0
        if length > max(before, after):  # no other suffix starts with as much
            score = _score(text, at, length, count, min_count, histogram)
            if score >= min_score:
                num_found = _note(found, num_found, rank, length, score)
        first, so_far = rank, seen
        seen += count
        while stack[height - 1, 1] > after:
            height -= 1
            first, length, so_far = stack[height, 0], stack[height, 1], stack[height, 2]
            score = _score(text, order[first], length, seen - so_far, min_count, histogram)
            if score >= min_score:
                num_found = _note(found, num_found, first, length, score)
        if stack[height - 1, 1] < after:
            stack[height, 0], stack[height, 1], stack[height, 2] = first, after, so_far
            height += 1
    return num_found


@compiled_inner
def _score(text: Any, at: int, length: int, count: int, min_count: int, histogram: Any) -> int:
    """Return a substring's score, 0 for a character and what is too rare, and note it."""
    chars = 0
    for place in range(at, at + length):
        chars += text[place] & 0xC0 != 0x80
    score = count * chars if chars > 1 and count >= min_count else 0
    if histogram.size:
        histogram[min(score, MAX_SCORE)] += 1
    return score


@compiled_inner
def _note(found: Any, num_found: int, rank: int, length: int, score: int) -> int:
    if num_found == found.shape[0]:
        return num_found
    found[num_found, 0], found[num_found, 1], found[num_found, 2] = rank, length, score
    return num_found + 1


@compiled_inner
def _end(text: Any, at: int, max_chars: int) -> int:
    """Return the bytes of a suffix up to its end or so many characters."""
    length, chars = 0, 0
    while text[at + length] != 0:
        if text[at + length] & 0xC0 != 0x80:
            if chars == max_chars:
                break
            chars += 1
        length += 1
    return length
