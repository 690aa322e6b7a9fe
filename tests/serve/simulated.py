"""A machine without tensors: it steps a scheduler and checks everything that must hold.

Its memory records for every slot which text, up to which token, the keys and values in it are of;
so a page shared, copied or reused wrongly is seen by the first sequence that attends to it.
"""

from collections import Counter
from collections.abc import Callable

from llmlab.serve.pages import PagePool
from llmlab.serve.params import SamplingParams
from llmlab.serve.prefix_cache import PrefixCache
from llmlab.serve.scheduler import Scheduler
from llmlab.serve.sequence import Sequence, Slice, Step

NEVER = 10_000
"""Steps that no test needs."""


def sequence(
    number: int,
    prompt: int | list[int],
    max_tokens: int,
    *,
    priority: int = 0,
    salt: str | None = None,
    prompt_logprobs: int | None = None,
    client: str = "",
    adapter: str | None = None,
    is_streamed: bool = True,
) -> Sequence:
    """Return a request; a prompt given by its length shares nothing with the others."""
    ids = list(range(1000 * number, 1000 * number + prompt)) if isinstance(prompt, int) else prompt
    return Sequence(
        number=number,
        prompt_len=len(ids),
        token_ids=list(ids),
        params=SamplingParams(priority=priority, cache_salt=salt, prompt_logprobs=prompt_logprobs),
        max_len=len(ids) + max_tokens,
        seed=0,
        client=client,
        adapter=adapter,
        is_streamed=is_streamed,
    )


def scheduler(
    num_pages=64, page_len=4, max_batch_tokens=16, max_running=4, cached=True, pace=None
) -> Scheduler:
    """Return a small scheduler."""
    return Scheduler(
        PagePool(num_pages, page_len, PrefixCache(page_len) if cached else None),
        max_batch_tokens=max_batch_tokens,
        max_running=max_running,
        pace=pace,
    )


class Machine:
    """Steps a scheduler as the engine would.

    Args:
        plan: the scheduler.
        next_token: the token that a sequence generates; None ends it.
    """

    def __init__(
        self, plan: Scheduler, next_token: Callable[[Sequence], int | None] = lambda seq: 0
    ) -> None:
        self.plan = plan
        self.finished: list[Sequence] = []
        self._next_token = next_token
        self._memory: list[object] = [None] * plan.max_len

    @property
    def is_busy(self) -> bool:
        """Whether a request is not finished."""
        return bool(self.plan.running or len(self.plan.waiting) or self.plan.num_parked)

    def step(self) -> list[tuple[int, int, int]]:
        """Run one step; return (number, start, end) of its slices."""
        step = self.plan.schedule()
        self._check_step(step)
        self._copy(step.copies)
        for part in step.slices:
            self._compute(part)
        for part in step.slices:
            self._check_context(part)
        self.plan.computed(step.slices)
        for part in step.slices:
            self._advance(part)
        self.check()
        return [(part.seq.number, part.start, part.end) for part in step.slices]

    def run(self) -> int:
        """Step until nothing is left; return the number of steps."""
        for num_steps in range(NEVER):
            if not self.is_busy:
                return num_steps
            self.step()
        raise AssertionError("it never ends")

    def check(self) -> None:
        """What holds between any two calls, whatever came before."""
        plan, pool = self.plan, self.plan.pool
        holders = [seq.pages for seq in plan.running] + [group.pages for group in plan._holding]
        owners = Counter(page for pages in holders for page in pages)
        assert all(len(set(pages)) == len(pages) for pages in holders)
        assert {page: pool.num_owners(page) for page in range(pool.num_pages)} == {
            page: owners[page] for page in range(pool.num_pages)
        }
        assert pool.num_free + len(owners) == pool.num_pages
        idle = [*pool._free, *pool._cached]
        assert len(set(idle)) == len(idle) == pool.num_free
        assert not set(idle) & set(owners)
        assert len(plan.running) <= plan.max_running
        order = [(seq.level, seq.number) for seq in plan.running]
        assert order == sorted(order)
        waiting = list(plan.waiting)
        assert len(waiting) == len(plan.waiting)
        assert not any(seq.pages or seq.num_computed for seq in waiting)
        groups = {id(seq.group): seq.group for seq in [*plan.running, *waiting] if seq.group}
        assert plan.num_parked == sum(len(group.parked) for group in groups.values())
        for group in plan._holding:
            assert group.num_waiting == sum(seq.group is group for seq in waiting) > 0
        parked = [seq for group in groups.values() for seq in group.parked]
        clients = {seq.client for seq in [*plan.running, *waiting, *parked]}
        assert len(plan.share) == len(clients), "counters of clients that are gone"
        self._check_cache()

    def _check_step(self, step: Step) -> None:
        plan, slices = self.plan, step.slices
        assert sum(part.num_tokens for part in slices) <= plan.max_batch_tokens
        assert len({part.seq.number for part in slices}) == len(slices)
        assert all(part.num_tokens == 1 for part in slices[: step.num_decodes])
        assert step.num_prompt_tokens + step.num_decodes == sum(p.num_tokens for p in slices)
        for part in slices:
            assert part.num_tokens >= 1
            assert part.start == part.seq.num_computed
            assert part.seq in plan.running
            assert len(part.seq.pages) * plan.pool.page_len >= part.end
        # A decode waits for nobody: every running sequence with one token to go is in the step.
        chosen = {part.seq.number for part in slices}
        assert all(seq.number in chosen for seq in plan.running if seq.num_pending == 1)
        assert not plan.running or plan._pace or plan.running[0].number in chosen

    def _copy(self, copies: list[tuple[int, int]]) -> None:
        P = self.plan.pool.page_len
        for source, target in copies:
            self._memory[target * P : (target + 1) * P] = self._memory[source * P :][:P]

    def _compute(self, part: Slice) -> None:
        seq, P = part.seq, self.plan.pool.page_len
        for at in range(part.start, part.end):
            page = seq.pages[at // P]
            assert self.plan.pool.num_owners(page) == 1, "written into a page that others use"
            self._memory[page * P + at % P] = _content(seq, at)

    def _check_context(self, part: Slice) -> None:
        seq, P = part.seq, self.plan.pool.page_len
        for at in range(part.end):
            assert self._memory[seq.pages[at // P] * P + at % P] == _content(seq, at)

    def _advance(self, part: Slice) -> None:
        seq = part.seq
        if seq.params.prompt_logprobs is not None and seq.num_scored < seq.prompt_len:
            assert part.start < seq.num_scored, "a prompt token that nobody scores"
            seq.num_scored = max(seq.num_scored, min(part.end + 1, seq.prompt_len))
        if not part.is_last:
            return
        token = self._next_token(seq) if part.wants_token else None
        if token is not None:
            seq.token_ids.append(token)
        if token is None or len(seq.token_ids) == seq.max_len:
            if seq.params.prompt_logprobs is not None:
                assert seq.num_scored == seq.prompt_len
            self.finished.append(seq)
            self.plan.remove(seq)

    def _check_cache(self) -> None:
        cache, pool = self.plan.pool.cache, self.plan.pool
        if cache is None:
            assert not pool.num_cached
            return
        assert set(pool._cached) <= set(cache._keys)
        assert not set(pool._free) & set(cache._keys)
        P = pool.page_len
        for page, (_, tokens) in cache._keys.items():
            contents = self._memory[page * P : (page + 1) * P]
            assert [text[-1] for _, text in contents] == list(tokens)  # type: ignore[misc]


def _content(seq: Sequence, at: int) -> tuple[object, tuple[int, ...]]:
    """Return what the keys and values of a token depend on."""
    return (seq.params.cache_salt, seq.adapter), tuple(seq.token_ids[: at + 1])
