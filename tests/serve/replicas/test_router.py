"""Which replica gets a request, for any traffic."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.serve.replicas.router import MAX_LEAD, REQUEST_TOKENS, PrefixRouter

PAGE = 4


def router(num_replicas: int = 2, *, capacity: int = 1000, max_pages: int = 1000) -> PrefixRouter:
    made = PrefixRouter(page_len=PAGE)
    for replica in range(num_replicas):
        made.add(replica, capacity=capacity, max_pages=max_pages)
    return made


def text(seed: int, num_tokens: int = 200) -> list[int]:
    """Return token ids that differ from those of another seed in every page."""
    rng = random.Random(seed)
    return [rng.randrange(50_000) for _ in range(num_tokens)]


def routed(made: PrefixRouter, prompt: list[int]) -> int:
    chosen = made.route(prompt)
    assert chosen is not None
    return chosen


@st.composite
def prompts(draw) -> list[int]:
    """Prompts that often share beginnings."""
    shared = text(draw(st.integers(0, 2)), draw(st.integers(0, 40)))
    return shared + draw(st.lists(st.integers(0, 3), max_size=10))


@settings(max_examples=100, deadline=None)
@given(data=st.data(), num_replicas=st.integers(1, 4), capacity=st.integers(1, 20))
def test_loads_memory_and_choices_stay_in_bounds(data, num_replicas, capacity):
    max_pages = 6
    made = router(num_replicas, capacity=capacity, max_pages=max_pages)
    running: list[int] = []
    for _ in range(data.draw(st.integers(1, 60), label="events")):
        event = data.draw(st.sampled_from(["route", "route", "route", "done", "die", "start"]))
        before = made.loads
        if event == "route":
            chosen = made.route(data.draw(prompts()))
            if chosen is None:
                assert all(load == capacity for load in before.values())
            else:
                assert before[chosen] < capacity
                assert before[chosen] <= min(before.values()) + MAX_LEAD
                running.append(chosen)
        elif event == "done" and running:
            made.done(running.pop(data.draw(st.integers(0, len(running) - 1))))
        elif event == "die" and before:
            dead = data.draw(st.sampled_from(sorted(before)))
            made.remove(dead)
            running = [replica for replica in running if replica != dead]
        elif event == "start":
            absent = set(range(num_replicas)) - set(before)
            for replica in absent:
                made.add(replica, capacity=capacity, max_pages=max_pages)
        assert made.loads == {replica: running.count(replica) for replica in made.loads}
        assert made.num_pages <= max_pages * len(made.loads)


@settings(max_examples=100, deadline=None)
@given(
    turns=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 40)), min_size=1, max_size=40),
    num_replicas=st.integers(1, 4),
)
def test_the_next_turn_goes_where_the_last_one_was_when_loads_are_even(turns, num_replicas):
    made = router(num_replicas)
    histories = {user: text(user, PAGE) for user in range(5)}
    homes: dict[int, int] = {}
    for number, (user, length) in enumerate(turns):
        histories[user] = histories[user] + text(100 + number, length)
        chosen = routed(made, histories[user])
        assert chosen == homes.setdefault(user, chosen)
        made.done(chosen)


def test_a_long_history_outweighs_a_few_requests():
    made = router()
    history = text(1, 4 * REQUEST_TOKENS)
    assert [made.route([*history, number]) for number in range(6)] == [0, 0, 0, 0, 1, 1]


def test_nothing_outweighs_the_largest_lead():
    made = router()
    history = text(1, 100 * REQUEST_TOKENS)
    homes = [made.route([*history, number]) for number in range(MAX_LEAD + 2)]
    assert homes == [0] * (MAX_LEAD + 1) + [1]


def test_a_short_common_beginning_does_not_gather_everyone_in_one_place():
    made = router()
    system = text(7, REQUEST_TOKENS // 2)
    for user in range(10):
        made.route([*system, *text(user, 20)])
        loads = made.loads
        assert abs(loads[0] - loads[1]) <= 1


def test_strangers_one_after_another_use_the_emptiest_cache():
    made = router(3)
    for user in range(9):
        chosen = routed(made, text(user))
        assert chosen == user % 3
        made.done(chosen)


def after(first_one: list[list[int]], other: list[list[int]]) -> PrefixRouter:
    """Return a router whose replicas have read these prompts, in this order, and are idle."""
    made = PrefixRouter(page_len=PAGE)
    made.add(1, capacity=1, max_pages=8)
    for prompt in other:
        assert routed(made, prompt) == 1
        made.done(1)
    assert routed(made, []) == 1  # is full from here on
    made.add(0, capacity=1, max_pages=8)
    for prompt in first_one:
        assert routed(made, prompt) == 0
        made.done(0)
    made.done(1)
    return made


def test_prompts_with_another_root_have_nothing_in_common():
    made = router()
    prompt = text(1)
    assert made.route(prompt, root="ann") == 0
    assert made.route(prompt, root="bob") == 1
    assert [made.route(prompt, root=root) for root in ("ann", "bob", "bob", "ann")] == [0, 1, 1, 0]
    assert made.num_pages == 2 * len(prompt) // PAGE


def test_requests_with_one_prompt_need_room_for_all():
    made = router(capacity=5)
    assert made.route(text(1), num_requests=3) == 0
    assert made.route(text(1), num_requests=3) == 1  # which has not read it
    assert made.route(text(1), num_requests=3) is None
    made.done(0)
    assert made.route(text(2), num_requests=3) == 0
    assert made.loads == {0: 5, 1: 3}


def test_the_longest_unused_prompt_is_forgotten():
    old, new, newest = (text(seed, 4 * PAGE) for seed in range(3))
    beginnings = [old[:PAGE], new[:PAGE]]
    made = after([old, new, old, newest], beginnings)  # `old` was used again
    assert made.num_pages == 8 + 2
    assert made.route(old) == 0
    made = after([old, new, old, newest], beginnings)
    assert made.route(new) == 1


def test_the_end_of_a_prompt_is_forgotten_before_its_beginning():
    long = text(1, 8 * PAGE)
    made = after([long, text(2, 3 * PAGE)], [long[: 4 * PAGE]])
    assert made.route(long) == 0  # which still has its first five pages


def test_a_dead_replica_is_forgotten_and_comes_back_with_an_empty_cache():
    made = router()
    assert made.route(text(1)) == 0
    made.done(0)
    made.remove(0)
    made.remove(0)
    made.done(0)
    assert made.route(text(1)) == 1
    made.done(1)
    made.add(0, capacity=10, max_pages=10)
    assert made.route(text(1)) == 1
    made.remove(1)
    made.remove(0)
    assert made.route(text(1)) is None


@pytest.mark.parametrize("num_tokens", [0, 1, PAGE - 1])
def test_a_prompt_shorter_than_a_page_leaves_nothing(num_tokens):
    made = router()
    assert made.route(text(1, num_tokens)) == 0
    assert made.num_pages == 0
