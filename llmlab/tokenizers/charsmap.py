"""SentencePiece's normaliser: a compiled character map, then rules about spaces.

The map replaces strings by strings (NFKC and the like, as a table), the longest match first. In
the file it is a double-array trie followed by the replacements; it is read once into a dict, and
only the characters that some rule mentions are looked at again. Not here: Unicode's own forms.

Each class has `apply(text)` and `segments(text)`, which yields (number of original characters,
what they become) in order; a run of unchanged characters is one segment.

Sources: Kudo and Richardson, arXiv:1808.06226; the trie: Aoe 1989, "An efficient digital search
algorithm by using a double-array structure", with the units of darts-clone.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from llmlab.errors import TokenizerError
from llmlab.tokenizers.decoders import SPACE_MARK

_MAX_KEY_BYTES = 64
"""Bound on what a rule replaces; those of NFKC replace up to 12 bytes."""

_MAX_NODES = 2_000_000
"""Bound on the prefixes of all that is replaced; NFKC has 264 000."""

_ROWS = 4096
"""Trie nodes looked at in one go, 255 places each."""

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

    def segments(self, text: str) -> Iterator[tuple[int, str]]:
        """Yield (number of original characters, what they become), in order."""
        return ((length, replacement) for length, replacement, _ in self.units(text))

    def units(self, text: str) -> Iterator[Unit]:
        """Yield the segments, each with whether it is a rule's or a kept string."""
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


class SentencePieceNormalizer:
    """What a `.model` file asks to be done to a text before it is cut.

    Args:
        rules: of the character map, applied first.
        add_dummy_prefix: put a space before the text.
        remove_extra_whitespaces: drop spaces at both ends and after a space.
        escape_whitespaces: write U+2581 for a space.
        kept: strings that stay as they are (the user-defined pieces).
    """

    def __init__(
        self,
        rules: Mapping[str, str],
        *,
        add_dummy_prefix: bool = True,
        remove_extra_whitespaces: bool = True,
        escape_whitespaces: bool = True,
        kept: Collection[str] = (),
    ) -> None:
        self._map = CharsMap(rules, kept=kept) if rules or kept else None
        self._prefix = add_dummy_prefix
        self._remove = remove_extra_whitespaces
        self._space = SPACE_MARK if escape_whitespaces else " "
        self._plain = not any("  " in text for text in (*rules.values(), *kept))

    def apply(self, text: str) -> str:
        """Return the normalised text."""
        if not self._plain:
            return "".join(replacement for _, replacement in self.segments(text))
        if not text:
            return ""
        text = self._map.apply(text) if self._map else text
        if self._remove:
            text = re.sub("  +", " ", text).lstrip(" ").rstrip(" " + self._space)
            if not text:
                return ""
        text = " " + text if self._prefix else text
        return text.replace(" ", self._space)

    def segments(self, text: str) -> Iterator[tuple[int, str]]:
        """Yield (number of original characters, what they become), in order."""
        if not text:
            return
        segments = list(self._spaced(text))
        at = len(segments)
        while self._remove and at > 0:  # spaces at the end, and the prefix if nothing else is left
            at -= 1
            length, replacement = segments[at]
            segments[at] = length, replacement.rstrip(self._space)
            if segments[at][1]:
                break
        yield from segments

    def _spaced(self, text: str) -> Iterator[tuple[int, str]]:
        """Yield the segments with the rules about spaces applied but for those at the end."""
        if self._prefix:
            yield 0, self._space
        after_space = self._remove
        for length, replacement in _by_spaces(self._units(text)):
            if after_space:
                replacement = replacement.lstrip(" ")
            if replacement:
                after_space = self._remove and replacement.endswith(" ")
            yield length, replacement.replace(" ", self._space)

    def _units(self, text: str) -> Iterable[Unit]:
        return self._map.units(text) if self._map else [(len(text), text, False)]


def _by_spaces(units: Iterable[Unit]) -> Iterator[tuple[int, str]]:
    """Yield the same segments with every space of a run on its own."""
    for length, replacement, is_one in units:
        if is_one or " " not in replacement:
            yield length, replacement
        else:
            yield from ((len(part), part) for part in re.findall("[^ ]+| ", replacement))


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
    bases, keys = _offsets(units[:1]), [b""]
    left = _MAX_NODES  # branches may share their ends, so there can be more than units
    while keys:
        parents, labels, places = _children(units, bases)
        left -= len(places)
        keys = [keys[i] + bytes([b]) for i, b in zip(parents, labels, strict=True)]
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


def _children(
    units: NDArray[np.int64], bases: NDArray[np.int64]
) -> tuple[list[int], list[int], NDArray[np.int64]]:
    """Return each child's parent (a row of `bases`), its label, and its place in the trie."""
    labels = np.arange(1, 256)
    found = [(bases[:0], bases[:0], bases[:0])]
    for first in range(0, len(bases), _ROWS):
        places = bases[first : first + _ROWS, None] ^ labels  # (R, 255)
        inside = places < len(units)
        child = units[np.where(inside, places, 0)]
        rows, columns = np.nonzero(inside & ((child & (1 << 31 | 0xFF)) == labels))
        found.append((rows + first, columns + 1, places[rows, columns]))
    parents, names, where = (np.concatenate(column) for column in zip(*found, strict=True))
    return parents.tolist(), names.tolist(), where


def _offsets(units: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how far from a unit its children are (an exclusive or)."""
    return (units >> 10) << ((units & (1 << 9)) >> 6)
