"""Which replica gets a prompt: the one for which it is least work, none far busier than another.

Work is counted in tokens: those of the prompt that the replica would have to read, plus a fixed
number for each request it already has. All requests of one prompt go to one replica. A prompt's
beginning need not be read again where it was read before, so the next turn of a conversation
returns to where the last one was, a short common system prompt yields to an idle replica, and
nothing draws a request to a replica that is `max_lead` requests ahead of the least busy one.

Not here: what is really cached. The router remembers, for each replica, the pages of the prompts
it sent there, as many as that replica's cache has, the longest unused forgotten first; it may be
wrong in either direction, which costs time and nothing else.
Sources: the cache-aware router of SGLang v0.4 (approximate prefix tree, balance threshold), and
llm-d's scorer (hashed chunks in an LRU list). Plain Python.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

REQUEST_TOKENS = 32
"""A request that a replica already has counts as much as this many prompt tokens to read."""

MAX_LEAD = 8
"""No request goes to a replica that has over this many more than the least busy one."""


@dataclass(slots=True, eq=False)
class _Target:
    """A replica as the router sees it."""

    capacity: int
    max_pages: int
    load: int = 0
    pages: OrderedDict[int, None] = field(default_factory=OrderedDict)
    """Keys of pages sent there, the longest unused first; a key stands for all before it, too."""

    def has_room(self, num_requests: int) -> bool:
        """Whether it may be given so many more requests."""
        return self.load + num_requests <= self.capacity


class PrefixRouter:
    """Chooses among living replicas, and counts what each one has to do.

    Args:
        page_len: tokens per page; only whole pages can be found again.
        max_lead: most requests by which a replica that is chosen may lead the least busy one.
    """

    def __init__(self, *, page_len: int, max_lead: int = MAX_LEAD) -> None:
        self._page_len = page_len
        self._max_lead = max_lead
        self._targets: dict[int, _Target] = {}

    @property
    def loads(self) -> dict[int, int]:
        """Requests that each living replica has."""
        return {replica: target.load for replica, target in self._targets.items()}

    @property
    def num_pages(self) -> int:
        """Pages remembered, of all replicas."""
        return sum(len(target.pages) for target in self._targets.values())

    def add(self, replica: int, *, capacity: int, max_pages: int) -> None:
        """Make a replica known, with nothing in its cache.

        Args:
            replica: its number.
            capacity: most requests it may have.
            max_pages: pages in its cache, and to remember for it.
        """
        self._targets[replica] = _Target(capacity, max_pages)

    def remove(self, replica: int) -> None:
        """Forget a replica and what it had; one that is not known is no error."""
        self._targets.pop(replica, None)

    def route(
        self, prompt_ids: Sequence[int], *, root: Hashable = None, num_requests: int = 1
    ) -> int | None:
        """Choose a replica for a prompt and count its requests as the replica's until `done`.

        Args:
            prompt_ids: the prompt.
            root: what prompts must have in common, beside their tokens, to share pages.
            num_requests: how many have this prompt.

        Returns:
            Its number; None when there is none with room for all.
        """
        keys = list(self._keys(prompt_ids, root))
        loads = {n: t.load for n, t in self._targets.items() if t.has_room(num_requests)}
        if not loads:
            return None
        most = min(loads.values()) + self._max_lead
        fit = [replica for replica, load in loads.items() if load <= most]
        best = min(fit, key=lambda replica: self._cost(replica, keys, len(prompt_ids)))
        self._targets[best].load += num_requests
        self._remember(self._targets[best], keys)
        return best

    def done(self, replica: int) -> None:
        """Count one request less; a replica that is not known is no error."""
        if replica in self._targets:
            self._targets[replica].load -= 1

    def _cost(self, replica: int, keys: list[int], prompt_len: int) -> tuple[int, int, int, int]:
        """Return what is compared: tokens of work, then load, use of the cache, number."""
        target = self._targets[replica]
        num_known = next(
            (index for index, key in enumerate(keys) if key not in target.pages), len(keys)
        )
        to_read = prompt_len - num_known * self._page_len
        work = to_read + REQUEST_TOKENS * target.load
        return work, target.load, len(target.pages), replica

    def _keys(self, prompt_ids: Sequence[int], root: Hashable) -> Iterator[int]:
        """Return a key for each whole page, made of its tokens and the key before it."""
        key = hash(root)
        for start in range(0, len(prompt_ids) - self._page_len + 1, self._page_len):
            key = hash((key, *prompt_ids[start : start + self._page_len]))
            yield key

    def _remember(self, target: _Target, keys: list[int]) -> None:
        for key in reversed(keys):  # the first page last: what others may share is kept longest
            target.pages[key] = None
            target.pages.move_to_end(key)
        while len(target.pages) > target.max_pages:
            target.pages.popitem(last=False)
