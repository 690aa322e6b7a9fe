"""Who has which request, and what becomes of it when a replica dies; plain Python, no tensors.

Requests with one prompt are a group: one replica has them all, so that it reads the prompt once.
A group waits in line until a replica has room, first come, first served. When its replica dies
before any of its answers began, it goes back to its place in the line; when part of one has gone
out it fails, for a second replica would not say the rest of the same answer. One that has lost
`max_tries` replicas fails, too: it may be what kills them.
Not here: which replica (router.py), how anything travels (engine.py).
"""

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from llmlab.serve.replicas.router import PrefixRouter

MAX_TRIES = 3
"""Replicas that a request may be given to, one after another; two may well die together."""


@dataclass(slots=True, eq=False)
class _Group:
    numbers: list[int]
    """Its requests that are not over, in their order; never empty."""
    prompt_ids: Sequence[int]
    root: Hashable
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
        self._groups: dict[int, _Group] = {}  # by the number of each of their requests
        self._line: deque[_Group] = deque()

    def __contains__(self, number: int) -> bool:
        return number in self._groups

    def add(
        self, numbers: Sequence[int], prompt_ids: Sequence[int], *, root: Hashable = None
    ) -> None:
        """Put new requests with one prompt at the end of the line.

        Args:
            numbers: theirs, which grow; no more than a replica may have.
            prompt_ids: the prompt.
            root: what prompts must have in common, beside their tokens, to share pages.
        """
        group = _Group(list(numbers), prompt_ids, root)
        self._groups.update(dict.fromkeys(numbers, group))
        self._line.append(group)

    def add_replica(self, replica: int, *, capacity: int, max_pages: int) -> None:
        """Count on a replica that is ready.

        Args:
            replica: its number.
            capacity: most requests it may have.
            max_pages: pages in its cache.
        """
        self._router.add(replica, capacity=capacity, max_pages=max_pages)

    def place(self) -> list[tuple[int, list[int]]]:
        """Give the groups at the head of the line to replicas while there is room.

        Returns:
            Pairs of a replica and the requests it is given.
        """
        placed = []
        while self._line:
            group = self._line[0]
            group.replica = self._router.route(
                group.prompt_ids, root=group.root, num_requests=len(group.numbers)
            )
            if group.replica is None:
                break
            group.num_tries += 1
            placed.append((group.replica, list(self._line.popleft().numbers)))
        return placed

    def begun(self, number: int) -> None:
        """Note that part of an answer has gone out."""
        self._groups[number].has_begun = True

    def done(self, number: int) -> int | None:
        """Forget a request that is over, or that nobody wants any more.

        Returns:
            The replica that has it; None when it waits in line or is not known.
        """
        group = self._groups.pop(number, None)
        if group is None:
            return None
        group.numbers.remove(number)
        if group.replica is not None:
            self._router.done(group.replica)
        elif not group.numbers:
            self._line.remove(group)
        return group.replica

    def died(self, replica: int) -> dict[int, str]:
        """Forget a replica; its requests go back to where they were in the line.

        Returns:
            The requests that fail instead, already forgotten, each with the reason.
        """
        self._router.remove(replica)
        lost = [group for group in dict.fromkeys(self._groups.values()) if group.replica == replica]
        failed = {}
        for group in lost:
            reason = self._reason_to_fail(group)
            if reason is None:
                group.replica = None
                self._line.append(group)
            else:
                failed.update(dict.fromkeys(group.numbers, reason))
        for number in failed:
            del self._groups[number]
        self._line = deque(sorted(self._line, key=lambda group: group.numbers[0]))
        return failed

    def _reason_to_fail(self, group: _Group) -> str | None:
        if group.has_begun:
            return (
                "the replica that was answering died when part of the answer had been sent; "
                "send the request again"
            )
        if group.num_tries >= self._max_tries:
            return f"{group.num_tries} replicas died with this request; it is not tried again"
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
