"""What becomes of requests when replicas die, for any order of events."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from llmlab.serve.replicas.dispatch import MAX_TRIES, Dispatcher, Restarts
from llmlab.serve.replicas.router import PrefixRouter

PROMPT = [1] * 40


def dispatcher(num_replicas: int = 2, capacity: int = 3) -> Dispatcher:
    made = Dispatcher(PrefixRouter(page_len=16))
    for replica in range(num_replicas):
        made.add_replica(replica, capacity=capacity, max_pages=10)
    return made


class Traffic(RuleBasedStateMachine):
    """Any order of arrivals, answers, ends, deaths and starts, beside a simple record of them."""

    @initialize(num_replicas=st.integers(1, 3), capacity=st.integers(1, 12))
    def begin(self, num_replicas, capacity):
        self.made = dispatcher(num_replicas, capacity)
        self.capacity = capacity
        self.alive = dict.fromkeys(range(num_replicas), True)
        self.homes: dict[int, int] = {}  # requests that are with a replica
        self.waiting: list[int] = []
        self.begun: set[int] = set()
        self.tries: Counter[int] = Counter()
        self.num_requests = 0

    def place(self):
        for replica, number in self.made.place():
            assert self.alive[replica]
            assert number == self.waiting.pop(0)  # first come, first served
            assert number not in self.begun
            self.homes[number] = replica
            self.tries[number] += 1

    @rule(count=st.integers(1, 5))
    def arrive(self, count):
        for _ in range(count):
            self.made.add(self.num_requests, PROMPT)
            self.waiting.append(self.num_requests)
            self.num_requests += 1
        self.place()

    @precondition(lambda self: self.homes)
    @rule(data=st.data())
    def answer(self, data):
        number = data.draw(st.sampled_from(sorted(self.homes)))
        self.begun.add(number)
        self.made.begun(number)

    @precondition(lambda self: self.homes or self.waiting)
    @rule(data=st.data())
    def end(self, data):
        number = data.draw(st.sampled_from(sorted([*self.homes, *self.waiting])))
        assert number in self.made
        assert self.made.done(number) == self.homes.pop(number, None)
        assert number not in self.made
        if number in self.waiting:
            self.waiting.remove(number)
        self.place()

    @precondition(lambda self: any(self.alive.values()))
    @rule(data=st.data())
    def die(self, data):
        dead = data.draw(st.sampled_from([n for n, alive in self.alive.items() if alive]))
        self.alive[dead] = False
        lost = {number for number, replica in self.homes.items() if replica == dead}
        failed = set(self.made.died(dead))
        assert failed == {n for n in lost if n in self.begun or self.tries[n] == MAX_TRIES}
        self.waiting = sorted([*self.waiting, *(lost - failed)])
        self.homes = {n: replica for n, replica in self.homes.items() if n not in lost}
        self.place()

    @rule()
    def start(self):
        for replica, alive in self.alive.items():
            if not alive:
                self.made.add_replica(replica, capacity=self.capacity, max_pages=10)
                self.alive[replica] = True
        self.place()

    @invariant()
    def no_replica_has_too_many_and_none_idles(self):
        loads = Counter(self.homes.values())
        assert all(load <= self.capacity for load in loads.values())
        room = self.capacity * sum(self.alive.values()) - len(self.homes)
        assert not (self.waiting and room)


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_reasons_say_what_to_do():
    made = dispatcher(1)
    for number in (0, 1):
        made.add(number, PROMPT)
    assert made.place() == [(0, 0), (0, 1)]
    made.begun(0)
    assert list(made.died(0).items()) == [
        (
            0,
            "the replica that was answering died when part of the answer had been sent; "
            "send the request again",
        )
    ]
    failed: dict[int, str] = {}
    for replica in range(1, MAX_TRIES):
        assert not failed
        made.add_replica(replica, capacity=3, max_pages=10)
        assert made.place() == [(replica, 1)]
        failed = made.died(replica)
    assert failed == {1: "3 replicas died with this request; it is not tried again"}


def test_an_unknown_request_is_no_error():
    made = dispatcher()
    assert made.done(5) is None


@settings(max_examples=200, deadline=None)
@given(times=st.lists(st.integers(0, 500), max_size=40), most=st.integers(1, 4))
def test_restarts_are_never_more_than_allowed_in_any_window(times, most):
    restarts = Restarts(most, window_s=100)
    allowed = [now for now in sorted(times) if restarts.allow(now)]
    for start in allowed:
        assert sum(start <= now < start + 100 for now in allowed) <= most
    if times:
        assert allowed
