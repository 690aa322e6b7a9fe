"""SentencePiece's character map, which replaces strings by strings (NFKC and the like, as a table).

In a file it is a double-array trie followed by the replacements; it is read once into a dict, and
only the characters that some rule mentions are looked at again. Not here: Unicode's own forms
(unicode_forms.py), SentencePiece's rules about spaces (sentencepiece_rules.py).

Sources: Kudo and Richardson, arXiv:1808.06226; the trie: Aoe 1989, "An efficient digital search
algorithm by using a double-array structure", with the units of darts-clone.
"""

import re
from collections.abc import Collection, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from llmlab.errors import TokenizerError

_MAX_KEY_BYTES = 64
"""Bound on what a rule replaces; those of NFKC replace up to 12 bytes."""

_MAX_NODES = 2_000_000
"""Bound on the prefixes of all that is replaced; NFKC has 264 000."""

Unit = tuple[int, str, bool]
"""Original characters, what they become, and whether they are one thing or a run of characters."""


def charsmap_rules(data: bytes) -> dict[str, str]:
    """Read the compiled form of a map: size of the trie (uint32), the trie, the replacements.

    Raises:
        TokenizerError: it is damaged.
    """
    size = int.from_bytes(data[:4], "little")
    if len(data) < 4 or size % 4 or not 0 < size <= len(data) - 4:
        raise TokenizerError(
            f"the character map has {len(data)} bytes and its trie should have {size}; the file "
            "is damaged or cut short"
        )
    units = np.frombuffer(data, "<u4", count=size // 4, offset=4).astype(np.int64)
    replacements = data[4 + size :]
    rules = {}
    try:
        for key, start in _keys(units):
            rules[key.decode()] = replacements[start : replacements.index(0, start)].decode()
    except ValueError as error:  # an end that is not there, or no UTF-8
        raise TokenizerError(f"the character map is damaged: {error}") from error
    if not rules:
        raise TokenizerError("the character map has no rules; the file is damaged")
    return rules


class CharsMap:
    """Replaces strings by strings, from left to right, the longest match first.

    Args:
        rules: string to replacement; no string is empty.
        kept: strings that no rule touches, the longest first.
    """

    def __init__(self, rules: Mapping[str, str], *, kept: Collection[str] = ()) -> None:
        self._rules = rules
        self._kept = kept
        self._lengths: dict[str, list[int]] = {}  # first character to the lengths of its rules
        for key in sorted(self._rules, key=len, reverse=True):
            lengths = self._lengths.setdefault(key[0], [])
            if len(key) not in lengths:
                lengths.append(len(key))
        self._seconds = {key[1] for key in self._rules if len(key) > 1}
        firsts = {key for key in self._rules if len(key) == 1}
        self._mentioned = _finder(kept, firsts | self._seconds)

    def apply(self, text: str) -> str:
        """Return the text with every rule applied."""
        return "".join(replacement for _, replacement, _ in self.units(text))

    def has(self, text: str) -> bool:
        """Return whether a replacement or a kept string has this in it."""
        return any(text in each for each in (*self._rules.values(), *self._kept))

    def units(self, text: str) -> Iterator[Unit]:
        """Yield what each stretch of the text becomes; unchanged characters are one stretch."""
        done = at = 0
        while found := self._mentioned.search(text, at):
            start, size, replacement = self._match(text, done, found)
            at = start + max(size, 1)
            if size:
                if start > done:
                    yield start - done, text[done:start], False
                yield size, replacement, True
                done = at
        if done < len(text):
            yield len(text) - done, text[done:], False

    def _match(self, text: str, done: int, found: re.Match[str]) -> tuple[int, int, str]:
        """Return (start, length, replacement) of what applies at a find; length 0 for nothing.

        A character that stands second in a rule is found before its rule is, which starts one
        character earlier.
        """
        at = found.start()
        if at > done and text[at] in self._seconds and (size := self._longest(text, at - 1)) > 1:
            return at - 1, size, self._rules[text[at - 1 : at - 1 + size]]
        if found.lastindex:
            return at, len(found[0]), found[0]
        size = self._longest(text, at)
        return at, size, self._rules[text[at : at + size]] if size else ""

    def _longest(self, text: str, start: int) -> int:
        """Return the length of the longest rule that applies here, 0 for none."""
        for size in self._lengths.get(text[start], ()):
            if start + size <= len(text) and text[start : start + size] in self._rules:
                return size
        return 0


def _finder(kept: Collection[str], characters: set[str]) -> re.Pattern[str]:
    """Return what finds a kept string (group 1), the longest first, or one of the characters."""
    longest_first = sorted(kept, key=len, reverse=True)
    alternatives = [f"({'|'.join(map(re.escape, longest_first))})"] if kept else []
    if characters:
        alternatives.append(f"[{_ranges(sorted(map(ord, characters)))}]")
    return re.compile("|".join(alternatives) or "(?!)")


def _ranges(points: list[int]) -> str:
    """Write sorted code points as the inside of a character class."""
    ranges: list[list[int]] = []
    for point in points:
        if ranges and ranges[-1][1] == point - 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in ranges)


def _keys(units: NDArray[np.int64]) -> Iterator[tuple[bytes, int]]:
    """Yield the strings of a double-array trie and their values.

    The child of a node by byte b is at `base ^ b` and has b as its label; a string's value stands
    at the base of its last node.

    Raises:
        ValueError: the trie leads outside of itself or in a circle.
    """
    children, bases, keys = _Children(units), _offsets(units[:1]), [b""]
    left = _MAX_NODES  # branches may share their ends, so there can be more than units
    while keys:
        parents, labels, places = children.of(bases)
        left -= len(places)
        pairs = zip(parents.tolist(), labels.tolist(), strict=True)
        keys = [keys[parent] + bytes([label]) for parent, label in pairs]
        if left < 0 or (keys and len(keys[0]) > _MAX_KEY_BYTES):
            raise ValueError("its trie does not end")
        bases = places ^ _offsets(units[places])
        if (bases >= len(units)).any():
            raise ValueError("its trie leads outside of itself")
        ends = (units[places] >> 8) & 1  # whether a string ends at the node
        values = units[bases] & 0x7FFFFFFF
        for key, is_end, value in zip(keys, ends.tolist(), values.tolist(), strict=True):
            if is_end:
                yield key, value


class _Children:
    """The nodes of a trie by the base they are found from: node i with label b is at `base ^ b`."""

    def __init__(self, units: NDArray[np.int64]) -> None:
        labels = units & 0xFF
        places = np.flatnonzero((labels != 0) & (units & 1 << 31 == 0))
        bases, labels = places ^ labels[places], labels[places]
        order = np.lexsort((labels, bases))
        self._bases, self._labels, self._places = bases[order], labels[order], places[order]

    def of(
        self, bases: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return each child's parent (a row of `bases`), its label, and its place in the trie."""
        first = np.searchsorted(self._bases, bases)
        counts = np.searchsorted(self._bases, bases, side="right") - first
        if counts.sum() > _MAX_NODES:
            raise ValueError("its trie does not end")
        parents = np.repeat(np.arange(len(bases)), counts)
        within = np.arange(len(parents)) - np.repeat(np.cumsum(counts) - counts, counts)
        rows = first[parents] + within
        return parents, self._labels[rows], self._places[rows]


def _offsets(units: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how far from a unit its children are (an exclusive or)."""
    return (units >> 10) << ((units & (1 << 9)) >> 6)
