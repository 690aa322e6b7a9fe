"""Bulk byte-level BPE: bytes to ids, with a cache from pre-token to ids.

A loop over the bytes cuts off one pre-token after another and copies its ids out of the cache, or
merges it and keeps the result. The cache never grows: a pre-token has two slots it may lie in,
side by side, and a new one takes the place of the one used less recently. A slot holds the
pre-token itself, so a hit is certain and never a matter of hashes; with up to 7 ids it is one
line of the CPU's cache, with more it is two. A pre-token too long for a slot is merged each time;
those are rare and rarely come again.

Not here: what the cuts are (scanner.py), how merging works (merging.py), threads (../bulk.py).
"""

from typing import Any, NamedTuple

import numpy as np

from llmlab.tokenizers.compiled.jit import compiled, compiled_inner
from llmlab.tokenizers.compiled.merging import SHORT_LEN, merge
from llmlab.tokenizers.compiled.scanner import piece_end
from llmlab.tokenizers.compiled.words import find_word

MAX_KEY_BYTES = 31
"""A longer pre-token is not cached."""

MAX_KEPT_IDS = 23
"""A pre-token of more ids is not cached."""

OVERRUN = 3
"""Ids that may be written, as garbage, behind the last one."""

SLOT_BYTES = 128
_LINE_BYTES = 64
_WORDS = SLOT_BYTES // 8
_COUNT, _FIRST_ID = 8, 9  # columns of `cells`; the pre-token and its length fill those before
_COPIED = 1 + OVERRUN  # ids copied at once: most pre-tokens have no more

_ONES = 2**64 - 1
_KEY_MASKS = np.array(
    [
        [_ONES >> 8 * min(max(8 - size + 8 * word, 0), 8) for word in range(4)]
        for size in range(MAX_KEY_BYTES + 1)
    ],
    np.uint64,
)
"""By the bytes in a pre-token: what its four words of eight bytes keep of what stands there."""

_LENGTH_SHIFT = np.uint64(56)
_TURN = np.uint64(32)
_MIX_A = np.uint64(0x9E3779B97F4A7C15)
_MIX_B = np.uint64(0xC2B2AE3D27D4EB4F)
_MIX_C = np.uint64(0x165667B19E3779F9)
_MIX_D = np.uint64(0xD6E8FEB86659FD93)


class Tables(NamedTuple):
    """What decides the ids of a pre-token."""

    byte_ids: Any
    """(256,) int64: the id of each byte, -1 for one that is dropped."""

    pairs: Any
    """(rows, 2) uint64: the merges (merging.py)."""

    words: Any
    """(rows, 3) int64: pre-tokens that become one id, merges or not (words.py)."""

    spellings: Any
    """(bytes,) uint8, read-only: the bytes of the words, one after another."""


class Workspace(NamedTuple):
    """What one thread writes to while it encodes."""

    keys: Any
    """(slots, 16) uint64: the first four are a pre-token, zero-filled, the last byte its length."""

    cells: Any
    """(slots, 32) uint32, the same memory: from column `_COUNT` on the number of ids, and they."""

    scratch: Any
    """(SHORT_LEN,) uint64 for merging."""


def new_workspace(num_slots: int) -> Workspace:
    """Return an empty workspace of `SLOT_BYTES * num_slots` bytes; a power of two of slots."""
    memory = np.zeros((num_slots + 1) * SLOT_BYTES, np.uint8)
    start = -memory.ctypes.data % _LINE_BYTES
    slots = memory[start : start + num_slots * SLOT_BYTES].reshape(num_slots, SLOT_BYTES)
    return Workspace(slots.view(np.uint64), slots.view(np.uint32), np.empty(SHORT_LEN, np.uint64))


@compiled
def encode_spans(
    data: Any,
    bounds: Any,
    classes: Any,
    rules: Any,
    tables: Tables,
    space: Workspace,
    out: Any,
    ends: Any,
) -> Any:
    """Encode texts that lie one after another and return the number of ids.

    Args:
        data: (bytes,) uint8, read-only: valid UTF-8.
        bounds: (num_texts + 1,) int64; text i is `data[bounds[i] : bounds[i + 1]]`.
        classes: as in `piece_end`.
        rules: as in `piece_end`.
        tables: what decides the ids.
        space: this thread's workspace.
        out: uint32, `OVERRUN` longer than the texts have bytes; receives the ids.
        ends: (num_texts,) int64; receives where each text's ids end in `out`.
    """
    # Taking an array out of a tuple counts its users, which in the loop would cost more than the
    # rest of it.
    keys, cells, scratch = space
    byte_ids, pairs, words, spellings = tables
    count = 0
    for text in range(ends.shape[0]):
        at, stop = bounds[text], bounds[text + 1]
        while at < stop:
            end = piece_end(data, at, stop, classes, rules)
            slot = _slot_of(data, at, end, keys) if end - at <= MAX_KEY_BYTES else -1
            kept = np.int64(cells[slot, _COUNT]) if slot >= 0 else 0
            if kept == 0:
                kept = _encode_piece(
                    data, at, end, byte_ids, pairs, words, spellings, scratch, out, count
                )
                if slot >= 0 and kept <= MAX_KEPT_IDS:
                    _keep(cells, slot, kept, out, count)
            else:
                _copy(cells, slot, kept, out, count)
            count += kept
            at = end
        ends[text] = count
    return count


@compiled_inner
def _copy(cells: Any, slot: np.int64, kept: int, out: Any, count: int) -> None:
    for place in range(_COPIED):  # a fixed number of turns is never mispredicted
        out[count + place] = cells[slot, _FIRST_ID + place]
    for place in range(_COPIED, kept):
        out[count + place] = cells[slot, _FIRST_ID + place]


@compiled_inner
def _keep(cells: Any, slot: np.int64, kept: int, out: Any, count: int) -> None:
    cells[slot, _COUNT] = kept
    for place in range(kept):
        cells[slot, _FIRST_ID + place] = out[count + place]


@compiled_inner
def _slot_of(data: Any, at: int, end: int, keys: Any) -> np.int64:
    """Return the slot of a pre-token, with no ids in it when the pre-token was in neither."""
    size = end - at
    if at + MAX_KEY_BYTES < data.shape[0]:
        a = _word(data, at) & _KEY_MASKS[size, 0]
        b = _word(data, at + 8) & _KEY_MASKS[size, 1]
        c = _word(data, at + 16) & _KEY_MASKS[size, 2]
        d = _word(data, at + 24) & _KEY_MASKS[size, 3]
    else:
        a, b = _last_word(data, at, end), _last_word(data, at + 8, end)
        c, d = _last_word(data, at + 16, end), _last_word(data, at + 24, end)
    d |= np.uint64(size) << _LENGTH_SHIFT
    mixed = a * _MIX_A ^ b * _MIX_B ^ c * _MIX_C ^ d * _MIX_D
    mixed = (mixed ^ mixed >> _TURN) * _MIX_A
    slot = np.int64(mixed >> _TURN & np.uint64(keys.shape[0] - 1))
    if not _holds(keys, slot, a, b, c, d):
        _fetch(keys, slot, a, b, c, d)
    return slot


@compiled_inner
def _fetch(
    keys: Any, slot: np.int64, a: np.uint64, b: np.uint64, c: np.uint64, d: np.uint64
) -> None:
    """Move a pre-token from the other slot to this one, or make this one its empty slot."""
    other = slot ^ 1
    is_there = _holds(keys, other, a, b, c, d)
    for word in range(_WORDS):
        keys[slot, word], keys[other, word] = keys[other, word], keys[slot, word]
    if not is_there:
        keys[slot, 0], keys[slot, 1], keys[slot, 2], keys[slot, 3] = a, b, c, d
        keys[slot, _COUNT // 2] = 0


@compiled_inner
def _holds(
    keys: Any, slot: np.int64, a: np.uint64, b: np.uint64, c: np.uint64, d: np.uint64
) -> bool:
    return keys[slot, 0] == a and keys[slot, 1] == b and keys[slot, 2] == c and keys[slot, 3] == d


@compiled_inner
def _word(data: Any, at: int) -> np.uint64:
    """Return eight bytes as a number. Written out, it compiles to one load."""
    first = np.uint64(at)
    return (
        np.uint64(data[first])
        | np.uint64(data[first + np.uint64(1)]) << np.uint64(8)
        | np.uint64(data[first + np.uint64(2)]) << np.uint64(16)
        | np.uint64(data[first + np.uint64(3)]) << np.uint64(24)
        | np.uint64(data[first + np.uint64(4)]) << np.uint64(32)
        | np.uint64(data[first + np.uint64(5)]) << np.uint64(40)
        | np.uint64(data[first + np.uint64(6)]) << np.uint64(48)
        | np.uint64(data[first + np.uint64(7)]) << np.uint64(56)
    )


@compiled_inner
def _last_word(data: Any, at: int, end: int) -> np.uint64:
    """Return up to eight bytes as a number, none from `end` on."""
    word = np.uint64(0)
    for place in range(min(end - at, 8)):
        word |= np.uint64(data[at + place]) << np.uint64(8 * place)
    return word


@compiled
def _encode_piece(
    data: Any,
    at: int,
    end: int,
    byte_ids: Any,
    pairs: Any,
    words: Any,
    spellings: Any,
    scratch: Any,
    out: Any,
    count: int,
) -> int:
    """Write the ids of one pre-token at `count` and return how many there are."""
    whole = find_word(words, spellings, data, at, end)
    if whole >= 0:
        out[count] = whole
        return 1
    num_ids = 0
    for place in range(at, end):
        token = byte_ids[data[place]]
        if token >= 0:
            out[count + num_ids] = token
            num_ids += 1
    return merge(out, count, num_ids, pairs, scratch)
