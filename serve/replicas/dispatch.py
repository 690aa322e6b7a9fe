"""Who has which request, and what becomes of it when a replica dies; plain Python, no tensors.

A request waits in line until a replica has room, first come, first served. When its replica dies
before any of its answer came, it goes back to its place in the line; when part of the answer has
gone out it fails, for a second replica would not say the rest of the same answer. One that has
lost `max_tries` replicas fails, too: it may be what kills them.
Not here: which replica (router.py), how anything travels (engine.py).
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from llmlab.serve.replicas.router import PrefixRouter

MAX_TRIES = 3
"""Replicas that a request may be given to, one after another; two may well die together."""


@dataclass(slots=True, eq=False)
class _Entry:
    prompt_ids: Sequence[int]
    replica: int | None = None
    num_tries: int = 0
    has_begun: bool = False


class Dispatcher:
    """The requests of all replicas, by number.

    Args:
        router: chooses replicas; this alone uses it.
        max_tries: replicas that a request may be given to, one after another.
    """

    def __init__(self, router: PrefixRouter, *, max_tries: int = MAX_TRIES) -> None:
        self._router = router
        self._max_tries = max_tries
        self._entries: dict[int, _Entry] = {}
        self._line: deque[int] = deque()

    def __contains__(self, number: int) -> bool:
        return number in self._entries

    def add(self, number: int, prompt_ids: Sequence[int]) -> None:
        """Put a new request at the end of the line; numbers grow."""
        self._entries[number] = _Entry(prompt_ids)
        self._line.append(number)

    def add_replica(self, replica: int, *, capacity: int, max_pages: int) -> None:
        """Count on a replica that is ready.

        Args:
            replica: its number.
            capacity: most requests it may have.
            max_pages: pages in its cache.
        """
        self._router.add(replica, capacity=capacity, max_pages=max_pages)

    def place(self) -> list[tuple[int, int]]:
        """Give the requests at the head of the line to replicas while there is room.

        Returns:
            Pairs of replica and request.
        """
        placed = []
        while self._line:
            entry = self._entries[self._line[0]]
            entry.replica = self._router.route(entry.prompt_ids)
            if entry.replica is None:
                break
            entry.num_tries += 1
            placed.append((entry.replica, self._line.popleft()))
        return placed

    def begun(self, number: int) -> None:
        """Note that part of the answer has gone out."""
        self._entries[number].has_begun = True

    def done(self, number: int) -> int | None:
        """Forget a request that is over, or that nobody wants any more.

        Returns:
            The replica that has it; None when it waits in line or is not known.
        """
        entry = self._entries.pop(number, None)
        if entry is None:
            return None
        if entry.replica is None:
            self._line.remove(number)
        else:
            self._router.done(entry.replica)
        return entry.replica

    def died(self, replica: int) -> dict[int, str]:
        """Forget a replica; its requests go back to where they were in the line.

        Returns:
            The requests that fail instead, already forgotten, each with the reason.
        """
        self._router.remove(replica)
        lost = [number for number, entry in self._entries.items() if entry.replica == replica]
        failed = {}
        for number in lost:
            reason = self._reason_to_fail(self._entries[number])
            if reason is None:
                self._entries[number].replica = None
            else:
                failed[number] = reason
                del self._entries[number]
        again = [number for number in lost if number not in failed]
        self._line = deque(sorted([*again, *self._line]))
        return failed

    def _reason_to_fail(self, entry: _Entry) -> str | None:
        if entry.has_begun:
            return (
                "the replica that was answering died when part of the answer had been sent; "
                "send the request again"
            )
        if entry.num_tries >= self._max_tries:
            return f"{entry.num_tries} replicas died with this request; it is not tried again"
        return None


class Restarts:
    """How often a replica may be replaced: a few times in a while, not in a circle.

    Args:
        most: replacements within the window; one more is refused.
        window_s: its length in seconds.
    """

    def __init__(self, most: int = 3, window_s: float = 60) -> None:
        self._times: deque[float] = deque(maxlen=most)
        self._window_s = window_s

    def allow(self, now_s: float) -> bool:
        """Say whether one may be started now, and count it if so.

        Args:
            now_s: seconds of any clock that does not go back.
        """
        is_full = len(self._times) == self._times.maxlen
        if is_full and now_s - self._times[0] < self._window_s:
            return False
        self._times.append(now_s)
        return True
