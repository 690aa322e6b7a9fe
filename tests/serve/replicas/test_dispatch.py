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
        self.groups: dict[int, int] = {}  # the first number of each request's group
        self.homes: dict[int, int] = {}  # requests that are with a replica
        self.waiting: list[int] = []
        self.begun: set[int] = set()  # groups
        self.tries: Counter[int] = Counter()  # of groups

    def members(self, group):
        return [number for number, first in self.groups.items() if first == group]

    def place(self):
        for replica, numbers in self.made.place():
            assert self.alive[replica]
            group = self.groups[numbers[0]]
            assert group not in self.begun
            assert numbers == self.members(group)  # together
            assert numbers == self.waiting[: len(numbers)]  # first come, first served
            del self.waiting[: len(numbers)]
            self.homes.update(dict.fromkeys(numbers, replica))
            self.tries[group] += 1

    @rule(data=st.data(), count=st.integers(1, 5))
    def arrive(self, data, count):
        for _ in range(count):
            first = max(self.tries, default=-1) + 100
            size = data.draw(st.integers(1, min(self.capacity, 4)))
            numbers = list(range(first, first + size))
            self.made.add(numbers, PROMPT)
            self.groups.update(dict.fromkeys(numbers, first))
            self.tries[first] = 0
            self.waiting += numbers
        self.place()

    @precondition(lambda self: self.homes)
    @rule(data=st.data())
    def answer(self, data):
        number = data.draw(st.sampled_from(sorted(self.homes)))
        self.begun.add(self.groups[number])
        self.made.begun(number)

    @precondition(lambda self: self.groups)
    @rule(data=st.data())
    def end(self, data):
        number = data.draw(st.sampled_from(sorted(self.groups)))
        assert number in self.made
        assert self.made.done(number) == self.homes.pop(number, None)
        assert number not in self.made
        del self.groups[number]
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
        hopeless = self.begun | {group for group, n in self.tries.items() if n == MAX_TRIES}
        assert failed == {number for number in lost if self.groups[number] in hopeless}
        self.waiting = sorted([*self.waiting, *(lost - failed)])
        self.homes = {n: replica for n, replica in self.homes.items() if n not in lost}
        for number in failed:
            del self.groups[number]
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
        if self.waiting:
            head = len(self.members(self.groups[self.waiting[0]]))
            living = [replica for replica, alive in self.alive.items() if alive]
            assert all(loads[replica] + head > self.capacity for replica in living)

    @invariant()
    def a_group_has_one_home(self):
        homes = {(self.groups[number], replica) for number, replica in self.homes.items()}
        assert len(homes) == len({group for group, _ in homes})


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_reasons_say_what_to_do():
    made = dispatcher(1)
    for number in (0, 1):
        made.add([number], PROMPT)
    assert made.place() == [(0, [0]), (0, [1])]
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
        assert made.place() == [(replica, [1])]
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
