"""The scheduler, driven with sequences whose tokens are made up: no model, no tensors.

Random lives are in test_accounting.py.
"""

from itertools import count, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.serve.fairness import GENERATED_WEIGHT, PROMPT_WEIGHT
from llmlab.serve.pace import Pace
from llmlab.serve.waiting import PATIENCE
from tests.serve.simulated import Machine, scheduler, sequence


def machine(**sizes) -> Machine:
    return Machine(scheduler(**sizes))


def test_a_long_prompt_is_read_in_chunks_beside_the_decodes():
    lab = machine(max_batch_tokens=8)
    lab.plan.add(sequence(0, 2, 9))
    assert lab.step() == [(0, 0, 2)]
    lab.plan.add(sequence(1, 17, 2))
    assert lab.step() == [(0, 2, 3), (1, 0, 7)]
    assert lab.step() == [(0, 3, 4), (1, 7, 14)]
    assert lab.step() == [(0, 4, 5), (1, 14, 17)]
    assert lab.step() == [(0, 5, 6), (1, 17, 18)]


@pytest.mark.parametrize(("cached", "again"), [(False, (1, 0, 5)), (True, (1, 2, 5))])
def test_the_newest_gives_its_pages_back_and_is_computed_again(cached, again):
    lab = machine(num_pages=4, page_len=2, max_batch_tokens=8, cached=cached)
    lab.plan.add(sequence(0, 2, 5))
    lab.plan.add(sequence(1, 2, 5))
    steps = [lab.step() for _ in range(6)]
    assert steps[:2] == [[(0, 0, 2), (1, 0, 2)], [(0, 2, 3), (1, 2, 3)]]
    assert steps[2:4] == [[(0, 3, 4), (1, 3, 4)], [(0, 4, 5)]]
    assert lab.plan.num_preemptions == 1
    # Its generated tokens are part of what is computed again; what nobody needed is still there.
    assert steps[5] == [again]
    assert lab.finished[0].num_cached == 0


def test_a_sequence_that_cannot_fit_is_refused():
    plan = scheduler(num_pages=4, page_len=4)
    with pytest.raises(ValueError, match="sequence of 17 tokens, the pool holds 16"):
        plan.add(sequence(0, 1, 1), sequence(1, 16, 1))
    assert not len(plan.waiting)
    assert not plan.num_parked


# The prefix cache


def test_what_two_prompts_share_is_computed_once():
    lab = machine(page_len=4, max_batch_tokens=32)
    text = list(range(14))
    lab.plan.add(sequence(0, text, 3))
    assert lab.step() == [(0, 0, 14)]
    lab.plan.add(sequence(1, [*text[:9], 99, 98, 97], 1))
    lab.plan.add(sequence(2, text[:8], 1))
    assert lab.step() == [(0, 14, 15), (1, 8, 12), (2, 4, 8)]
    assert [seq.num_cached for seq in lab.finished] == [8, 4]
    assert (lab.plan.num_looked_up, lab.plan.num_found) == (14 + 12 + 8, 12)


def test_a_conversation_goes_on_from_what_was_generated():
    lab = machine(page_len=4, max_batch_tokens=32)
    first = sequence(0, 6, 7)
    lab.plan.add(first)
    lab.run()
    assert lab.plan.pool.num_free == 64
    assert lab.plan.pool.num_cached == 3
    # 13 tokens, of which the last was never computed: three full pages.
    lab.plan.add(sequence(1, [*first.token_ids, 7, 7], 1))
    assert lab.step() == [(1, 12, 15)]


def test_nothing_is_shared_between_salts_or_adapters():
    lab = machine(page_len=4, max_batch_tokens=99, max_running=9)
    text = list(range(9))
    roots = [(None, None), ("s", None), (None, "x"), ("x", None)]
    for number, (salt, adapter) in enumerate(roots * 2):
        lab.plan.add(sequence(number, text, 1, salt=salt, adapter=adapter))
    assert [part[1:] for part in lab.step()] == [(0, 9)] * 8
    for number, (salt, adapter) in enumerate([*roots[:3], ("y", None)], 8):
        lab.plan.add(sequence(number, text, 1, salt=salt, adapter=adapter))
    assert lab.step() == [(8, 8, 9), (9, 8, 9), (10, 8, 9), (11, 0, 9)]


def test_where_the_prompt_is_scored_nothing_is_taken_from_the_cache():
    lab = machine(page_len=4, max_batch_tokens=32)
    for number in range(2):
        lab.plan.add(sequence(number, list(range(9)), 1, prompt_logprobs=0))
        assert lab.step() == [(number, 0, 9)]
    assert lab.plan.num_found == 0
    lab.plan.add(sequence(2, list(range(9)), 1))
    assert lab.step() == [(2, 8, 9)]


def test_old_content_gives_way_to_new_from_its_end():
    lab = machine(num_pages=4, page_len=2, max_batch_tokens=32)
    old = list(range(9))
    lab.plan.add(sequence(0, old[:7], 1))
    lab.run()
    assert lab.plan.pool.num_cached == 3
    lab.plan.add(sequence(1, 3, 1))  # takes the free page and the last one of the other
    lab.run()
    lab.plan.add(sequence(2, old[:8], 0))
    assert lab.step() == [(2, 4, 8)]


# Groups


def test_a_group_reads_its_prompt_once_and_shares_all_its_pages():
    lab = machine(page_len=4, max_batch_tokens=16, max_running=8)
    group = [sequence(number, list(range(6)), 4) for number in range(3)]
    lab.plan.add(*group)
    assert lab.plan.num_parked == 2
    assert lab.step() == [(0, 0, 6)]
    assert lab.plan.num_parked == 0
    assert lab.step() == [(0, 6, 7), (1, 5, 6), (2, 5, 6)]
    # The first page is everyone's; of the second there were three readers, so two copied it.
    assert len({seq.pages[0] for seq in group}) == 1
    assert len({seq.pages[1] for seq in group}) == 3
    assert lab.plan.num_copies == 2
    assert lab.plan.pool.num_free == 64 - 4
    lab.run()
    assert [seq.num_cached for seq in lab.finished] == [0, 0, 0]
    assert lab.plan.num_looked_up == 6


def test_a_group_outlives_the_one_that_read_its_prompt():
    """Also without a prefix cache, and when the reader ends with its first token."""
    lab = machine(page_len=4, max_batch_tokens=16, max_running=1, cached=False)
    lab.plan.add(*(sequence(number, list(range(8)), 1) for number in range(3)))
    assert [lab.step() for _ in range(3)] == [[(0, 0, 8)], [(1, 7, 8)], [(2, 7, 8)]]
    assert lab.plan.num_copies == 1  # the last one owns the page alone
    assert lab.plan.pool.num_free == 64


def test_when_the_reader_is_aborted_the_next_one_reads():
    lab = machine(page_len=4, max_batch_tokens=9)
    group = [sequence(number, list(range(13)), 1) for number in range(4)]
    lab.plan.add(*group)
    assert lab.step() == [(0, 0, 9)]
    lab.plan.remove(group[1])  # one that waits for the reader
    lab.plan.remove(group[0])
    lab.check()
    assert lab.step() == [(2, 8, 13)]  # two pages were full
    assert lab.step() == [(3, 12, 13)]
    assert not lab.is_busy


def test_nobody_writes_into_a_page_that_a_newcomer_finds():
    prompt = list(range(6))  # two full pages, whose last token each of the group computes again
    lab = Machine(scheduler(20, page_len=3, max_batch_tokens=40, max_running=5))
    lab.plan.add(sequence(0, prompt, 1), sequence(1, prompt, 1))
    lab.step()
    lab.plan.add(sequence(2, [*prompt, 7], 1))
    assert lab.step() == [(1, 5, 6), (2, 6, 7)]
    assert lab.plan.num_copies == 1


def test_a_group_gives_its_pages_up_before_anyone_is_preempted():
    lab = machine(num_pages=5, page_len=2, max_batch_tokens=9, max_running=1, cached=False)
    lab.plan.add(*(sequence(number, list(range(3)), 7) for number in range(2)))
    for _ in range(6):
        lab.step()
    # The reader has a page of its own in place of the second; together they own all five.
    assert (lab.plan.num_copies, lab.plan.pool.num_free) == (1, 0)
    assert lab.step() == [(0, 8, 9)]
    assert lab.plan.num_preemptions == 0
    assert lab.step() == [(1, 0, 3)], "what the group gave up is computed again"


# Who is next


def test_the_lower_priority_gives_its_pages_back_first():
    lab = machine(num_pages=4, page_len=2, max_batch_tokens=8)
    lab.plan.add(sequence(0, 2, 5, priority=1))
    lab.step()
    lab.plan.add(sequence(1, 2, 5))
    lab.run()
    assert lab.plan.num_preemptions > 0
    assert [seq.number for seq in lab.finished] == [1, 0]


def test_priorities_then_arrival():
    lab = machine(max_running=1)
    for number, priority in enumerate([3, 0, -1, 0, -1]):
        lab.plan.add(sequence(number, 3, 2, priority=priority))
    lab.run()
    assert [seq.number for seq in lab.finished] == [2, 4, 1, 3, 0]


@pytest.mark.parametrize("priorities", [(1,), (1, 1000), (5, 6, 7)])
def test_a_priority_waits_for_a_bounded_number_of_turns(priorities):
    """Better requests never end; each other priority is served once in PATIENCE + C turns."""
    lab = machine(max_running=1)
    numbers = count()
    turns = []
    for _ in range(200):
        levels = {seq.params.priority for seq in [*lab.plan.running, *lab.plan.waiting]}
        for priority in {0, *priorities} - levels:
            lab.plan.add(sequence(next(numbers), 1, 1, priority=priority))
        lab.plan.add(sequence(next(numbers), 1, 1))
        lab.step()
        turns.append(lab.finished[-1].params.priority)
    for priority in priorities:
        served = [-1, *(turn for turn, each in enumerate(turns) if each == priority), len(turns)]
        gaps = [late - early for early, late in pairwise(served)]
        assert max(gaps) <= PATIENCE + len(priorities) + 1
    assert turns.count(0) > 150, "and the best one is served most"


def test_who_took_a_turn_keeps_its_place():
    """A better request that came later is preempted before it."""
    lab = machine(num_pages=4, page_len=2, max_running=2, cached=False)
    numbers = count(1)
    low = sequence(0, 2, 6, priority=9)
    lab.plan.add(low)
    before = 0
    while low not in lab.finished:
        while len(lab.plan.waiting) < 3:
            lab.plan.add(sequence(next(numbers), 2, 6))
        lab.step()
        if low in lab.plan.running:
            assert low.level == 0
            assert low.num_generated == before + 1, "it was preempted"
            before = low.num_generated
    assert before == 5


def test_who_was_preempted_is_next_whoever_waits():
    lab = machine(num_pages=4, page_len=2, max_running=2)
    lab.plan.add(sequence(0, 2, 6, client="busy"))
    lab.plan.add(sequence(1, 2, 6, client="busy"))
    while not lab.plan.num_preemptions:
        lab.step()
    lab.plan.add(sequence(2, 2, 1, client="new"))
    lab.run()
    assert [seq.number for seq in lab.finished] == [0, 1, 2]


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_low_priorities_finish_under_endless_load_and_preemption(data):
    """Better requests arrive at every step, in a pool too small for those that run."""
    lab = Machine(
        scheduler(
            num_pages=data.draw(st.integers(4, 10)),
            page_len=data.draw(st.integers(1, 3)),
            max_batch_tokens=data.draw(st.integers(5, 9)),
            max_running=data.draw(st.integers(1, 4)),
            cached=data.draw(st.booleans()),
        )
    )
    longest = lab.plan.max_len
    low = [
        sequence(number, longest - data.draw(st.integers(1, longest - 1)), 1, priority=9)
        for number in range(3)
    ]
    for seq in low:
        seq.max_len = longest
        lab.plan.add(seq)
    sizes = data.draw(st.lists(st.integers(1, longest - 1), min_size=1, max_size=5))
    numbers = count(len(low))
    levels = data.draw(st.lists(st.integers(-2, 8), min_size=1, max_size=3))
    for step in range(5000):
        if all(seq in lab.finished for seq in low):
            break
        while len(lab.plan.waiting) < 4 + len(low):
            number = next(numbers)
            size = sizes[number % len(sizes)]
            level = levels[step * len(levels) // 5000]
            lab.plan.add(sequence(number, size, longest - size, priority=level))
        lab.step()
    assert all(seq in lab.finished for seq in low)


@settings(deadline=None)
@given(data=st.data())
def test_two_backlogged_clients_get_the_same_service(data):
    """However many requests each queues and however long these are (fairness.py has the bound)."""
    max_running = data.draw(st.integers(1, 3))
    lab = machine(max_running=max_running, max_batch_tokens=max_running + 5, cached=False)
    numbers = count()
    # A step can start as many as there are places; a backlogged client has more waiting.
    backlog = {name: max_running + data.draw(st.integers(1, 9)) for name in "ab"} | {"c": 0}
    sizes = {client: data.draw(st.tuples(st.integers(1, 9), st.integers(1, 6))) for client in "abc"}
    visits = data.draw(st.sets(st.integers(0, 149)))
    seen: set[int] = set()
    service: dict[str, int] = {"a": 0, "b": 0, "c": 0}
    bound = PROMPT_WEIGHT * 9 + GENERATED_WEIGHT * 6 * max_running
    for step in range(150):
        waiting = [seq.client for seq in lab.plan.waiting]
        for client, length in backlog.items():
            missing = length + (client == "c" and step in visits) - waiting.count(client)
            for _ in range(missing):
                lab.plan.add(sequence(next(numbers), *sizes[client], client=client))
        known = {seq.number: seq for seq in [*lab.plan.running, *lab.plan.waiting]}
        for number, _, end in lab.step():
            seq = known[number]
            if number not in seen:
                seen.add(number)
                service[seq.client] += PROMPT_WEIGHT * seq.prompt_len
            service[seq.client] += GENERATED_WEIGHT * (end >= seq.prompt_len)
        assert abs(service["a"] - service["b"]) <= bound
    assert min(service["a"], service["b"]) > bound, "long enough to tell"


def test_a_client_that_was_away_has_no_claims_and_no_debt():
    lab = machine(max_running=1)
    numbers = count()
    for _ in range(10):
        lab.plan.add(sequence(next(numbers), 5, 5, client="busy"))
    for _ in range(20):
        lab.step()
    for _ in range(6):
        lab.plan.add(sequence(next(numbers), 5, 5, client="late"))
    first = len(lab.finished)
    lab.run()
    order = [seq.client for seq in lab.finished[first:]]
    assert order[1:] == ["late", "busy"] * 5 + ["late"], "they take turns from now on"
    assert len(lab.plan.share) == 0


# The pace of running streams


def test_prompts_leave_running_streams_their_pace():
    pace = Pace(itl_ratio=2.0)
    lab = machine(max_batch_tokens=256, pace=pace)
    lab.plan.add(sequence(0, 2, 99))
    lab.step()
    for _ in range(9):
        pace.observe(1, 0, 0.010)
        pace.observe(1, 100, 0.060)  # half a millisecond for a prompt token
        lab.step()
    lab.plan.add(sequence(1, 140, 1))
    assert lab.step() == [(0, 11, 12), (1, 0, 20)]
    lab.plan.remove(lab.plan.running[0])
    assert lab.step() == [(1, 20, 140)], "nobody to wait for"


def test_what_nobody_reads_as_it_comes_holds_no_prompt_up():
    pace = Pace(itl_ratio=2.0)
    lab = machine(max_batch_tokens=256, pace=pace)
    lab.plan.add(sequence(0, 2, 99, is_streamed=False))
    lab.step()
    pace.observe(1, 0, 0.010)
    lab.plan.add(sequence(1, 140, 1))
    assert lab.step() == [(0, 2, 3), (1, 0, 140)]
