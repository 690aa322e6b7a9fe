"""Who is next: the sequences that wait, by priority, then by client, then by arrival.

The best priority that waits is next; inside it, first whoever ran before and was preempted, then
the client that had the least service, then its oldest request. So that nobody starves, a priority
that was passed over `PATIENCE` times in a row gets a turn: the sequence that takes it runs with the
best priority that waits, and keeps that. With C priorities waiting, each is served at least once in
`PATIENCE + C` turns, however many requests better ones bring.

Patience counts turns and not steps or seconds: where requests run long and turns are rare, everyone
waits, and the order of priorities must not wear off.

Not here: whether there is room for the next one (scheduler.py).
"""

from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, field

from llmlab.serve.fairness import FairShare
from llmlab.serve.sequence import Sequence

PATIENCE = 16
"""Turns that a priority is passed over in a row before it gets one."""


@dataclass(slots=True)
class _Level:
    """What waits with one priority; each list is in order of arrival."""

    returned: list[Sequence] = field(default_factory=list)
    """Preempted ones."""
    by_client: dict[str, list[Sequence]] = field(default_factory=dict)
    num_passed: int = 0
    """Turns since it was served, while something waited here."""


class WaitingQueue:
    """The sequences that wait for their turn.

    Args:
        share: what clients have had.
    """

    def __init__(self, share: FairShare) -> None:
        self._share = share
        self._levels: dict[int, _Level] = {}
        self._len = 0

    def __len__(self) -> int:
        return self._len

    def __iter__(self) -> Iterator[Sequence]:
        """Visit all, in no particular order."""
        for level in self._levels.values():
            yield from level.returned
            for queue in level.by_client.values():
                yield from queue

    def add(self, seq: Sequence) -> None:
        """Let a sequence that never ran wait for its turn."""
        queues = self._levels.setdefault(seq.level, _Level()).by_client
        insort(queues.setdefault(seq.client, []), seq, key=_number)
        self._share.wait(seq.client)
        self._len += 1

    def put_back(self, seq: Sequence) -> None:
        """Let a preempted sequence wait, before all that never ran."""
        insort(self._levels.setdefault(seq.level, _Level()).returned, seq, key=_number)
        self._len += 1

    def first(self) -> Sequence | None:
        """Return who is next; None when nobody waits."""
        if not self._levels:
            return None
        level = self._levels[self._next_level()]
        if level.returned:
            return level.returned[0]
        heads = (queue[0] for queue in level.by_client.values())
        return min(heads, key=lambda seq: (self._share.served(seq.client), seq.number))

    def take(self, seq: Sequence) -> None:
        """Give `seq`, which is next, its turn."""
        best = min(self._levels)
        for level in self._levels.values():
            level.num_passed += 1
        self._levels[seq.level].num_passed = 0
        self.remove(seq)
        seq.level = best

    def remove(self, seq: Sequence) -> None:
        """Forget a sequence that waits."""
        level = self._levels[seq.level]
        if seq in level.returned:
            level.returned.remove(seq)
        else:
            queue = level.by_client[seq.client]
            queue.remove(seq)
            if not queue:
                del level.by_client[seq.client]
            self._share.leave(seq.client)
        if not level.returned and not level.by_client:
            del self._levels[seq.level]
        self._len -= 1

    def _next_level(self) -> int:
        """Return the best level, unless one has lost its patience."""
        longest = max(self._levels, key=lambda name: (self._levels[name].num_passed, -name))
        is_overdue = self._levels[longest].num_passed >= PATIENCE
        return longest if is_overdue else min(self._levels)


def _number(seq: Sequence) -> int:
    return seq.number
