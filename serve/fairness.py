"""How much service each client has had, so that the one who had least is next.

A counter a client, in weighted tokens: what is read for it and what is generated for it. A client
with nothing waiting gathers no claims: when it asks again, its counter is lifted to the smallest
of those who wait, so it can neither be ahead for having been away nor lock the others out. Between
two clients who always have something waiting, the service of any period differs by at most twice
`PROMPT_WEIGHT * (longest prompt) + GENERATED_WEIGHT * (most tokens that the requests of one client
in the batch still generate)`, whatever they ask for.

Not here: who waits (waiting.py).
Source: virtual token counters, Sheng et al., arXiv 2401.00588.
"""

PROMPT_WEIGHT = 1
GENERATED_WEIGHT = 2
"""A generated token needs a step of its own, a prompt's tokens share one."""


class FairShare:
    """The counters of the clients that have requests; the others are forgotten."""

    def __init__(self) -> None:
        self._served: dict[str, int] = {}
        self._num_requests: dict[str, int] = {}
        self._num_waiting: dict[str, int] = {}

    def __len__(self) -> int:
        """Clients known."""
        return len(self._served)

    def served(self, client: str) -> int:
        """Return the weighted tokens that `client` is charged with."""
        return self._served[client]

    def open(self, client: str) -> None:
        """Note a new request."""
        self._served.setdefault(client, 0)
        self._num_requests[client] = self._num_requests.get(client, 0) + 1

    def close(self, client: str) -> None:
        """Note that a request is over."""
        self._num_requests[client] -= 1
        if not self._num_requests[client]:
            del self._num_requests[client], self._served[client]

    def wait(self, client: str) -> None:
        """Note that a request of `client` waits for its turn, and lift a counter left behind."""
        num_waiting = self._num_waiting.get(client, 0)
        if not num_waiting:
            # Where nobody waits everyone gets all they ask for, and what was before is settled.
            others = [self._served[other] for other in self._num_waiting]
            floor = min(others) if others else max(self._served.values())
            self._served[client] = max(self._served[client], floor)
        self._num_waiting[client] = num_waiting + 1

    def leave(self, client: str) -> None:
        """Note that a request of `client` waits no more."""
        self._num_waiting[client] -= 1
        if not self._num_waiting[client]:
            del self._num_waiting[client]

    def charge(self, client: str, *, num_prompt: int = 0, num_generated: int = 0) -> None:
        """Add what was done for `client`."""
        self._served[client] += PROMPT_WEIGHT * num_prompt + GENERATED_WEIGHT * num_generated
