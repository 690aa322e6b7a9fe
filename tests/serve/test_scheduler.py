"""The scheduler, driven with sequences whose tokens are made up: no model, no tensors."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.serve.pages import PagePool
from llmlab.serve.params import SamplingParams
from llmlab.serve.scheduler import Scheduler
from llmlab.serve.sequence import Sequence


def sequence(number: int, prompt_len: int, max_tokens: int) -> Sequence:
    return Sequence(
        number=number,
        prompt_len=prompt_len,
        token_ids=list(range(prompt_len)),
        params=SamplingParams(),
        max_len=prompt_len + max_tokens,
        seed=0,
    )


def scheduler(num_pages=64, page_len=4, max_batch_tokens=16, max_running=4) -> Scheduler:
    return Scheduler(
        PagePool(num_pages, page_len), max_batch_tokens=max_batch_tokens, max_running=max_running
    )


def step(plan: Scheduler) -> list[tuple[int, int, int]]:
    """Run one step as the engine would; returns (number, start, end) of its slices."""
    slices = plan.schedule()
    before = plan.num_preemptions
    check(plan, slices)
    plan.computed(slices)
    for part in slices:
        seq = part.seq
        if part.wants_token:
            seq.token_ids.append(0)
        if seq.num_pending == 0 or len(seq.token_ids) == seq.max_len:
            plan.remove(seq)
    assert plan.num_preemptions == before
    return [(part.seq.number, part.start, part.end) for part in slices]


def check(plan: Scheduler, slices) -> None:
    """What holds at every step, whatever came before."""
    assert sum(part.num_tokens for part in slices) <= plan.max_batch_tokens
    assert len({part.seq.number for part in slices}) == len(slices)
    assert len(plan.running) <= plan.max_running
    numbers = [seq.number for seq in [*plan.running, *plan.waiting]]
    assert numbers == sorted(numbers), "not in order of arrival"
    for part in slices:
        assert part.num_tokens >= 1
        assert part.start == part.seq.num_computed
        assert part.seq in plan.running
        assert len(part.seq.pages) * plan.pool.page_len >= part.end
    # A decode waits for nobody: every running sequence with one token to go is in the step.
    chosen = {part.seq.number for part in slices}
    assert all(seq.number in chosen for seq in plan.running if seq.num_pending == 1)
    owned = [page for seq in plan.running for page in seq.pages]
    assert len(set(owned)) == len(owned)
    assert len(owned) + plan.pool.num_free == plan.pool.num_pages
    assert not any(seq.pages or seq.num_computed for seq in plan.waiting)


@given(data=st.data())
def test_everyone_finishes_whatever_arrives_and_whoever_leaves(data):
    max_running = data.draw(st.integers(1, 5))
    plan = scheduler(
        num_pages=data.draw(st.integers(1, 12)),
        page_len=data.draw(st.integers(1, 5)),
        max_batch_tokens=max_running + data.draw(st.integers(1, 8)),
        max_running=max_running,
    )
    longest = plan.max_len
    arriving = [
        sequence(number, prompt_len, data.draw(st.integers(0, longest - prompt_len)))
        for number, prompt_len in enumerate(
            data.draw(st.lists(st.integers(1, longest), min_size=1, max_size=8))
        )
    ]
    unfinished = {seq.number: seq for seq in arriving}
    steps = 0
    while arriving or plan.running or plan.waiting:
        while arriving and (not (plan.running or plan.waiting) or data.draw(st.booleans())):
            plan.add(arriving.pop(0))
        queued = [*plan.running, *plan.waiting]
        if queued and data.draw(st.integers(0, 9)) == 0:
            gone = queued[data.draw(st.integers(0, len(queued) - 1))]
            plan.remove(gone)
            del unfinished[gone.number]
        oldest = next(iter([*plan.running, *plan.waiting]), None)
        done = step(plan)
        if oldest is not None:
            assert done, "work left and nothing scheduled"
            assert oldest.number in {number for number, _, _ in done}, "the oldest must move on"
        steps += 1
        assert steps < 10_000
    assert plan.pool.num_free == plan.pool.num_pages
    assert all(len(seq.token_ids) == seq.max_len for seq in unfinished.values())


def test_a_long_prompt_is_read_in_chunks_beside_the_decodes():
    plan = scheduler(max_batch_tokens=8)
    plan.add(sequence(0, prompt_len=2, max_tokens=9))
    assert step(plan) == [(0, 0, 2)]
    plan.add(sequence(1, prompt_len=17, max_tokens=2))
    assert step(plan) == [(0, 2, 3), (1, 0, 7)]
    assert step(plan) == [(0, 3, 4), (1, 7, 14)]
    assert step(plan) == [(0, 4, 5), (1, 14, 17)]
    assert step(plan) == [(0, 5, 6), (1, 17, 18)]


def test_the_newest_gives_its_pages_back_and_is_computed_again():
    plan = scheduler(num_pages=4, page_len=2, max_batch_tokens=8)
    plan.add(sequence(0, prompt_len=2, max_tokens=5))
    plan.add(sequence(1, prompt_len=2, max_tokens=5))
    steps = []
    while plan.running or plan.waiting:
        slices = plan.schedule()
        steps.append([(part.seq.number, part.start, part.end) for part in slices])
        plan.computed(slices)
        for part in slices:
            if part.wants_token:
                part.seq.token_ids.append(0)
            if len(part.seq.token_ids) == part.seq.max_len:
                plan.remove(part.seq)
    assert steps[:2] == [[(0, 0, 2), (1, 0, 2)], [(0, 2, 3), (1, 2, 3)]]
    assert steps[2:4] == [[(0, 3, 4), (1, 3, 4)], [(0, 4, 5)]]
    assert plan.num_preemptions == 1
    # Its generated tokens are part of what is computed again.
    assert steps[5] == [(1, 0, 5)]


def test_a_sequence_that_cannot_fit_is_refused():
    with pytest.raises(ValueError, match="sequence of 17 tokens, the pool holds 16"):
        scheduler(num_pages=4, page_len=4).add(sequence(0, prompt_len=16, max_tokens=1))
