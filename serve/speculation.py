"""Drafts: tokens that are guessed, and checked by the model in one step instead of several.

A draft rides behind the last token of a sequence. The model gives the next token after each of its
tokens, sampled as it would be without a draft, with the same random number; as long as a draft's
token is the one sampled it is right, and the first that is not ends the step. So a request gets the
tokens it would get without drafts, at any temperature; only its time depends on the guesses.

How many to guess is arithmetic: a longer step costs what such steps took of late, a draft token is
worth the chance that it and all before it are right. The number that gives most tokens a second is
taken, which is none where guesses are poor or the machine is busy with other sequences.

Not here: a model that drafts (draft_model.py), the check (runner.py), pages (scheduler.py).
Sources: prompt lookup decoding (github.com/apoorvumang/prompt-lookup-decoding); speculative
decoding, arXiv:2211.17192.
"""

import math
from collections.abc import Sequence

_KEY_BITS = 32
_MOST_CANDIDATES = 16
_LONGEST_MATCH = 16


class NgramIndex:
    """Where pairs of tokens of a text stood before, so that what followed can be guessed.

    Adding a token takes one look into a dict. A guess looks at up to 16 places, latest first, and
    takes the one before which most tokens are the same.
    """

    def __init__(self) -> None:
        self._last: dict[int, int] = {}  # by pair: the place behind its last occurrence
        self._before: list[int] = []  # by place: the place behind the pair's occurrence before
        self._num_indexed = 0

    def guess(self, token_ids: Sequence[int], count: int) -> list[int]:
        """Return up to `count` tokens that may follow; none where the last pair is new.

        Args:
            token_ids: what was given last time, and more at its end.
            count: most tokens wanted.
        """
        self._extend(token_ids)
        end = len(token_ids)
        if end < 2 or count < 1:
            return []
        place, best, longest = self._last.get(_pair(token_ids, end), -1), -1, 1
        for _ in range(_MOST_CANDIDATES):
            if place < 0:
                break
            length = _common_end(token_ids, place, end)
            if length > longest:
                best, longest = place, length
            place = self._before[place]
        if best < 0:
            return []
        found: list[int] = []
        for at in range(best, best + count):  # a text that repeats itself goes on to do so
            found.append(token_ids[at] if at < end else found[at - end])
        return found

    def _extend(self, token_ids: Sequence[int]) -> None:
        """Index all pairs but the last, which is what is looked for."""
        places = range(self._num_indexed, len(token_ids))
        for end in places:
            before = -1
            if end >= 2:
                key = _pair(token_ids, end)
                before = self._last.get(key, -1)
                self._last[key] = end
            self._before.append(before)
        self._num_indexed = max(self._num_indexed, len(token_ids))


def _pair(token_ids: Sequence[int], end: int) -> int:
    return token_ids[end - 2] << _KEY_BITS | token_ids[end - 1]


def _common_end(token_ids: Sequence[int], place: int, end: int) -> int:
    """Return how many tokens before `place` and before `end` are the same, 2 at least."""
    most = min(place, _LONGEST_MATCH)
    for length in range(2, most):
        if token_ids[place - length - 1] != token_ids[end - length - 1]:
            return length
    return max(most, 2)


class StepCost:
    """What a step of so many tokens takes, learned from steps; sizes are powers of two."""

    _PART = 0.2
    """Of what is known that a new observation replaces."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Learn what a step took.

        Args:
            num_tokens: of all its sequences.
            seconds: what it took.
        """
        size = _size(num_tokens)
        known = self._seconds.get(size, seconds)
        self._seconds[size] = known + self._PART * (seconds - known)

    def seconds(self, num_tokens: int) -> float:
        """Return the time to expect; a size never seen is hoped to cost what a smaller one does."""
        place = math.log2(max(num_tokens, 1))
        lower, upper = 1 << math.floor(place), 1 << math.ceil(place)
        first = self._at(lower)
        if upper == lower:
            return first
        return first + (max(self._at(upper), first) - first) * (num_tokens - lower) / lower

    def _at(self, size: int) -> float:
        smaller = [known for known in self._seconds if known <= size]
        if smaller:
            return self._seconds[max(smaller)]
        return min(self._seconds.values(), default=1.0)


def _size(num_tokens: int) -> int:
    return 1 << max(num_tokens - 1, 0).bit_length()


class Chance:
    """How often the next draft token of one sequence is right."""

    _START = 0.6
    _PART = 0.15
    """Of what is known that one right or wrong token replaces."""
    _FORGETTING = 0.02
    """Part of the way back to the start at each step without a draft, so that it is tried again."""

    def __init__(self) -> None:
        self.value = self._START

    def observe(self, num_drafted: int, num_right: int) -> None:
        """Learn from a step: so many leading draft tokens were right."""
        if not num_drafted:
            self.value += self._FORGETTING * (self._START - self.value)
            return
        for is_right in [1.0] * num_right + [0.0] * (num_right < num_drafted):
            self.value += self._PART * (is_right - self.value)


def draft_lens(
    chances: Sequence[float],
    most: Sequence[int],
    num_tokens: int,
    cost: StepCost,
    *,
    guess_s: float = 0.0,
) -> list[int]:
    """Choose how long each sequence's draft is, for most tokens per second.

    Args:
        chances: of each sequence that a draft token is right.
        most: the longest draft of each.
        num_tokens: of the step without drafts.
        cost: of steps.
        guess_s: seconds that guessing takes, for each token of the longest draft.
    """
    worth = sorted(
        (
            (chance**length, row)
            for row, chance in enumerate(chances)
            for length in range(1, most[row] + 1)
        ),
        reverse=True,
    )
    lens, best = [0] * len(chances), [0] * len(chances)
    expected = float(len(chances))
    best_rate = expected / cost.seconds(num_tokens)
    for count, (gain, row) in enumerate(worth, start=1):
        expected += gain
        lens[row] += 1
        rate = expected / (cost.seconds(num_tokens + count) + max(lens) * guess_s)
        if rate > best_rate:
            best_rate, best = rate, list(lens)
    return best
