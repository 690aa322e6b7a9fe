"""Random lives of a scheduler: nothing is lost, shared wrongly or forgotten, and everyone ends."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from tests.serve.simulated import Machine, scheduler, sequence

TEXTS = ([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4], [1] * 20)


class Lives(RuleBasedStateMachine):
    """Requests arrive, leave and are stepped in any order, in a pool that is too small."""

    @initialize(
        num_pages=st.integers(2, 14),
        page_len=st.integers(1, 4),
        max_running=st.integers(1, 5),
        extra=st.integers(1, 9),
        cached=st.booleans(),
    )
    def start(self, num_pages, page_len, max_running, extra, cached):
        plan = scheduler(num_pages, page_len, max_running + extra, max_running, cached)
        self.machine = Machine(plan, self.next_token)
        self.live = {}
        self.aborted = set()
        self.arrived = 0
        self.stop_at = None

    def next_token(self, seq):
        """Few different tokens, so that texts stay the same for long; some stop early."""
        if self.stop_at is not None and seq.num_generated == self.stop_at:
            return None
        return (seq.number + seq.num_generated) % 2

    @rule(
        text=st.sampled_from(TEXTS),
        length=st.integers(1, len(TEXTS[0])),
        last=st.integers(0, 1),
        max_tokens=st.integers(0, 12),
        priority=st.sampled_from([0, 0, 0, -1, 5]),
        client=st.sampled_from("abc"),
        salt=st.sampled_from([None, None, None, "s"]),
        adapter=st.sampled_from([None, None, None, "x"]),
        scored=st.sampled_from([None, None, None, 0]),
        num=st.sampled_from([1, 1, 1, 2, 3, 6]),
    )
    def arrive(self, text, length, last, max_tokens, priority, client, salt, adapter, scored, num):
        prompt = [*text[: length - 1], last][: self.machine.plan.max_len]
        room = self.machine.plan.max_len - len(prompt)
        num = 1 if scored is not None else num
        seqs = [
            sequence(
                self.arrived + number,
                prompt,
                min(room, max_tokens),
                priority=priority,
                salt=salt,
                prompt_logprobs=scored,
                client=client,
                adapter=adapter,
            )
            for number in range(num)
        ]
        self.arrived += num
        self.machine.plan.add(*seqs)
        self.live |= {seq.number: seq for seq in seqs}

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def abort(self, data):
        number = data.draw(st.sampled_from(sorted(self.live)))
        self.machine.plan.remove(self.live.pop(number))
        self.aborted.add(number)

    @rule(num=st.integers(1, 4), stop_at=st.none() | st.integers(0, 3))
    def step(self, num, stop_at):
        self.stop_at = stop_at
        for _ in range(num):
            self.machine.step()
        self.drop_finished()

    def drop_finished(self):
        for seq in self.machine.finished:
            self.live.pop(seq.number, None)

    @invariant()
    def everything_adds_up(self):
        if hasattr(self, "machine"):
            self.machine.check()

    def teardown(self):
        if not hasattr(self, "machine"):
            return
        self.stop_at = None
        self.machine.run()
        self.drop_finished()
        assert not self.live
        assert len(self.machine.finished) + len(self.aborted) == self.arrived
        plan = self.machine.plan
        assert plan.pool.num_free == plan.pool.num_pages
        assert len(plan.share) == 0
        assert plan.share._num_waiting == {}
        cache = plan.pool.cache
        assert plan.pool.num_cached == (0 if cache is None else len(cache))


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
