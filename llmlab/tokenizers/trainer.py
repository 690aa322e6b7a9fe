"""Learn the merges of byte-level BPE.

Each merge joins the most frequent pair of neighbouring tokens; of equally frequent pairs the one
whose left id, then right id, is smallest: the rule of Hugging Face `tokenizers`, so the merges are
the same. Ids are bytes in the order of their characters (alphabet.py), then merges as learnt.

Counting is over distinct pre-tokens with their frequencies, in integers without bound. A merge
touches only the words that hold its pair and corrects the counts by the difference; a heap holds
the pairs by count, and an entry whose count has sunk since is put back when it comes up. A word is
a string with one character per token, so replacing a pair is `str.replace` and comparing pairs is
comparing strings. Memory grows with the distinct pre-tokens, not with the text.

Source: Sennrich et al., arXiv:1508.07909.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from heapq import heapify, heappop, heappush

from llmlab.tokenizers.alphabet import CHARS, utf8
from llmlab.tokenizers.splits import Split
from llmlab.track import OnProgress, silent

MIN_COUNT = 2
"""A pair seen once is no pattern; training ends early when no pair is seen twice."""

MAX_PIECE_CHARS = 1024
"""A longer pre-token is data, not a word; it is counted in pieces of this length."""

BYTE_CHARS: tuple[str, ...] = tuple(sorted(CHARS))
"""The single-byte tokens in the order of their ids."""

_REPORT_EVERY = 100


def count_pieces(
    texts: Iterable[str], split: Split, *, on_progress: OnProgress = silent
) -> Counter[str]:
    """Count the pre-tokens of a stream of texts, holding one text at a time."""
    pattern = split.pattern
    counts: Counter[str] = Counter()
    num_chars = 0
    for number, text in enumerate(texts, start=1):
        counts.update(pattern.findall(text))
        num_chars += len(text)
        if number % _REPORT_EVERY == 0:
            on_progress({"documents": number, "chars": num_chars, "pieces": len(counts)})
    return counts


def learn_merges(
    counts: Mapping[str, int],
    num_merges: int,
    *,
    reserved: Collection[str] = (),
    on_progress: OnProgress = silent,
) -> list[tuple[str, str]]:
    """Learn merges, best first.

    Args:
        counts: pre-token to how often it was seen.
        num_merges: new tokens wanted; fewer come back when no pair is left that was seen
            `MIN_COUNT` times.
        reserved: spellings that no merge may make (the special tokens).
        on_progress: called every hundred merges.

    Returns:
        Pairs of tokens, spelled in the byte alphabet.
    """
    words = _Words(counts)
    spellings = dict(enumerate(BYTE_CHARS))
    ids = {spelling: token for token, spelling in spellings.items()}
    merges: list[tuple[str, str]] = []
    wanted = len(ids) + num_merges
    while len(ids) < wanted and (pair := words.best()):
        left, right = (spellings[ord(symbol)] for symbol in pair)
        if left + right in reserved:
            words.drop(pair)
            continue
        token = ids.setdefault(left + right, len(ids))
        spellings[token] = left + right
        merges.append((left, right))
        words.merge(pair, chr(token))
        if len(merges) % _REPORT_EVERY == 0:
            on_progress({"merge": f"{len(merges)}/{num_merges}"})
    return merges


class _Words:
    """The distinct words, the counts of their pairs, and where each pair occurs."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        self._words: list[str] = []
        self._counts: list[int] = []
        self._pairs: Counter[str] = Counter()
        self._places: defaultdict[str, list[int]] = defaultdict(list)
        for place, (word, count) in enumerate(_symbols(counts)):
            self._words.append(word)
            self._counts.append(count)
            for pair in _neighbours(word):
                self._pairs[pair] += count
                self._places[pair].append(place)
        self._heap = [(-count, pair) for pair, count in self._pairs.items()]
        heapify(self._heap)

    def best(self) -> str | None:
        """Return the most frequent pair, or None when none is frequent enough."""
        while self._heap:
            negative, pair = self._heap[0]
            count = self._pairs[pair]
            if count == -negative:
                return pair if count >= MIN_COUNT else None
            heappop(self._heap)
            if count > 0:
                heappush(self._heap, (-count, pair))
        return None

    def drop(self, pair: str) -> None:
        """Never offer this pair again."""
        del self._pairs[pair]

    def merge(self, pair: str, joined: str) -> None:
        """Replace a pair by one symbol in every word, leftmost first."""
        changes: defaultdict[str, int] = defaultdict(int)
        for place in set(self._places.pop(pair)):
            old = self._words[place]
            new = old.replace(pair, joined)
            if len(new) == len(old):
                continue  # an earlier merge took this occurrence
            self._words[place] = new
            count = self._counts[place]
            for gone in _neighbours(old):
                changes[gone] -= count
            for made in _neighbours(new):
                changes[made] += count
                if joined in made:
                    self._places[made].append(place)
        del self._pairs[pair]
        del changes[pair]
        for changed, change in changes.items():
            self._pairs[changed] += change
            if change > 0:
                heappush(self._heap, (-self._pairs[changed], changed))


def _symbols(counts: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Yield each pre-token with one character per byte, `chr(id of the byte)`, and its count."""
    symbol_of = {byte: chr(BYTE_CHARS.index(char)) for byte, char in enumerate(CHARS)}
    for piece, count in counts.items():
        word = utf8(piece).decode("latin-1").translate(symbol_of)
        for start in range(0, len(word), MAX_PIECE_CHARS):
            yield word[start : start + MAX_PIECE_CHARS], count


def _neighbours(word: str) -> list[str]:
    return [word[at : at + 2] for at in range(len(word) - 1)]
