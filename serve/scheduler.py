"""Which tokens of which sequences are computed next. Pure Python, no tensors, no clock.

One step is a list of slices under one token budget. Sequences that need a single token come
first, so a long prompt never stops the others; prompts share what is left in order, in chunks when
they are longer. A sequence takes the pages of all its known tokens when it is admitted, those that
the prefix cache or its group holds already among them, so only decoding can run out of pages; the
last in order then gives all of its pages back and is computed again later, its generated tokens
included.

The order is (level, arrival), where the level is the priority or better (waiting.py). No sequence
is accepted that the whole pool could not hold, so the first in order is never preempted and moves
on at every step in which prompts do, and everyone becomes the first.

A page with several owners, or one that can be found, is written by none: who is about to, copies
it first.

Not here: sampling and when a sequence is finished (engine.py), who is next (waiting.py).
Source: continuous batching, Orca (OSDI 2022); chunked prefill, Sarathi-Serve, arXiv 2403.02310.
"""

import collections.abc
from bisect import insort
from dataclasses import dataclass

from llmlab.serve.fairness import FairShare
from llmlab.serve.pace import Pace
from llmlab.serve.pages import PagePool
from llmlab.serve.prefix_cache import Parent
from llmlab.serve.sequence import Group, Sequence, Slice, Step
from llmlab.serve.waiting import WaitingQueue


@dataclass(frozen=True, slots=True)
class _Start:
    """What a sequence need not compute."""

    pages: list[int]
    """To be shared, with the first `num_computed` tokens in them."""
    num_computed: int
    num_chained: int
    parent: Parent


class Scheduler:
    """Decides what each step computes, and owns the account of pages.

    Args:
        pool: the pages sequences own, with the prefix cache if there is one.
        max_batch_tokens: most tokens in one step; above `max_running`, so that prompts move on
            beside a full batch of decodes.
        max_running: most sequences that own pages.
        pace: limits the prompts of a step while streams run; None does not.
    """

    def __init__(
        self, pool: PagePool, *, max_batch_tokens: int, max_running: int, pace: Pace | None = None
    ) -> None:
        self.pool = pool
        self.max_batch_tokens = max_batch_tokens
        self.max_running = max_running
        self.share = FairShare()
        self.running: list[Sequence] = []  # in order
        self.waiting = WaitingQueue(self.share)
        self.num_parked = 0
        """Sequences that wait for another to compute their prompt."""
        self.num_preemptions = 0
        self.num_copies = 0
        self.num_looked_up = 0
        """Prompt tokens that were looked for in the prefix cache."""
        self.num_found = 0
        """Those of them that were in it."""
        self._pace = pace
        self._holding: list[Group] = []  # groups that own pages
        self._copies: list[tuple[int, int]] = []  # of the step under way

    @property
    def max_len(self) -> int:
        """Tokens of the longest sequence that the pool can hold."""
        return self.pool.num_pages * self.pool.page_len

    def add(self, *seqs: Sequence) -> None:
        """Queue a sequence, or several that have the same prompt, which is computed once.

        Raises:
            ValueError: one can outgrow the pool, so it might never finish.
        """
        for seq in seqs:
            if seq.max_len > self.max_len:
                raise ValueError(f"sequence of {seq.max_len} tokens, the pool holds {self.max_len}")
        reader, *others = seqs
        if others:
            group = Group(reader, others)
            for seq in seqs:
                seq.group = group
        self.num_parked += len(others)
        for seq in seqs:
            self.share.open(seq.client)
        self.waiting.add(reader)

    def schedule(self) -> Step:
        """Choose the next step, single tokens first.

        The caller makes the copies, computes the slices, then calls `computed`.

        Returns:
            At most `max_batch_tokens` tokens; no slices when there is nothing to do.
        """
        before = self.num_preemptions
        self._copies = []
        slices = self._decodes()
        num_decodes = len(slices)
        if num_decodes:
            slices = self._with_drafts(slices)
        budget = self._prompt_budget(slices)
        for seq in self.running:
            if seq.num_pending > 1 and budget:
                slices.append(_slice(seq, budget))
                budget -= slices[-1].num_tokens
        while budget and self.num_preemptions == before:
            newcomer = self._admit()
            if newcomer is None:
                break
            slices.append(_slice(newcomer, budget))
            budget -= slices[-1].num_tokens
        self.num_copies += len(self._copies)
        return Step(slices, self._copies, num_decodes)

    def computed(self, slices: collections.abc.Sequence[Slice]) -> None:
        """Record that a step is done; before any of its sequences gets its next token."""
        for part in slices:
            seq = part.seq
            seq.num_computed = part.end
            if part.wants_token:
                self.share.charge(seq.client, num_generated=1)
            self._remember(seq)
            if seq.group is not None and seq.num_computed >= seq.prompt_len:
                self._hand_out(seq, seq.group)

    def room_for_draft(self, seq: Sequence, count: int) -> int:
        """Take pages for a draft as far as they are free; nobody gives way to it.

        Args:
            seq: it decodes.
            count: tokens that are wanted behind the known ones.

        Returns:
            How many fit; none where the page of the next token has other owners.
        """
        if count < 1 or self._is_shared(seq):
            return 0
        missing = self.pool.pages_for(len(seq.token_ids) + count) - len(seq.pages)
        num_spare = self.pool.num_free - len(self.running)  # the next step needs one for each
        if missing > 0:
            seq.pages += self.pool.take(max(0, min(missing, num_spare)))
        return max(0, min(count, len(seq.pages) * self.pool.page_len - len(seq.token_ids)))

    def drafted(self, seq: Sequence, num_right: int) -> None:
        """Record that so many tokens of a draft were right, after they were appended."""
        seq.num_computed += num_right
        self.share.charge(seq.client, num_generated=num_right)
        self._remember(seq)

    def remove(self, seq: Sequence) -> None:
        """Forget a sequence, finished or aborted, and give its pages up."""
        group = seq.group
        if group is not None and seq in group.parked:
            group.parked.remove(seq)
            self.num_parked -= 1
        elif seq in self.running:
            self.running.remove(seq)
        else:
            self.waiting.remove(seq)
        self._release(seq)
        if group is not None:
            self._leave(seq, group)
        self.share.close(seq.client)

    # Steps

    def _decodes(self) -> list[Slice]:
        slices: list[Slice] = []
        at = 0
        while at < len(self.running):  # `_make_room` can shorten the list, only behind `at`
            seq = self.running[at]
            if seq.num_pending == 1 and self._make_room(seq):
                slices.append(_slice(seq, 1))
            at += 1
        return slices

    def _with_drafts(self, decodes: list[Slice]) -> list[Slice]:
        """Let drafts ride along where budget and free pages are left; nobody gives way to them."""
        budget = self.max_batch_tokens - len(decodes)
        found = []
        for part in decodes:
            seq = part.seq
            most = min(len(seq.draft), budget, seq.max_len - part.end - 1)
            draft = seq.draft[: self.room_for_draft(seq, most)]
            budget -= len(draft)
            found.append(Slice(seq, part.start, part.end, draft))
        return found

    def _prompt_budget(self, decodes: list[Slice]) -> int:
        num_tokens = sum(part.num_tokens for part in decodes)
        room = self.max_batch_tokens - num_tokens
        if self._pace is None or not any(part.seq.is_streamed for part in decodes):
            return room
        limit = self._pace.prompt_budget(num_tokens)
        return room if limit is None else min(room, limit)

    def _make_room(self, seq: Sequence) -> bool:
        """Own alone the pages of all pending tokens; False when `seq` itself had to go."""
        while self._num_missing(seq) > self.pool.num_free:
            if self._holding:
                self._let_go(self._holding[0])
                continue
            last = self.running.pop()
            self._release(last)
            self.waiting.put_back(last)
            self.num_preemptions += 1
            if last is seq:
                return False
        seq.pages += self.pool.take(self.pool.pages_for(len(seq.token_ids)) - len(seq.pages))
        self._copy_shared(seq)
        return True

    def _num_missing(self, seq: Sequence) -> int:
        """Return how many pages `seq` has to take for its pending tokens."""
        missing = self.pool.pages_for(len(seq.token_ids)) - len(seq.pages)
        return max(missing, 0) + self._is_shared(seq)  # drafts may have left pages over

    def _is_shared(self, seq: Sequence) -> bool:
        """Return whether others own or may find the page of the next token, which then is copied.

        Pages behind it are its own.
        """
        at = seq.num_computed // self.pool.page_len
        if at >= len(seq.pages):
            return False
        return self.pool.num_owners(seq.pages[at]) > 1 or self._is_findable(seq.pages[at])

    def _is_findable(self, page: int) -> bool:
        return self.pool.cache is not None and page in self.pool.cache

    def _copy_shared(self, seq: Sequence) -> None:
        if self._is_shared(seq):
            at = seq.num_computed // self.pool.page_len
            shared, (own,) = seq.pages[at], self.pool.take(1)
            self._copies.append((shared, own))
            self.pool.give_back([shared])
            seq.pages[at] = own

    # Beginning and ending

    def _admit(self) -> Sequence | None:
        """Start the sequence that is next, if there is a place for it.

        One page for each running sequence stays free: a newcomer that takes the last page is
        thrown out as soon as another reaches the end of its page.
        """
        if len(self.running) >= self.max_running:
            return None
        seq = self.waiting.first()
        if seq is None:
            return None
        start = self._start_of(seq)
        while self._num_needed(seq, start) + len(self.running) > self.pool.num_free:
            if self.running or not self._holding:
                return None
            self._let_go(self._holding[0])  # nobody else will give pages back
            start = self._start_of(seq)
        self.waiting.take(seq)
        insort(self.running, seq, key=_order)
        self._begin(seq, start)
        return seq

    def _start_of(self, seq: Sequence) -> _Start:
        """Look up what is computed already."""
        group = seq.group
        if group is not None and group.pages:
            # Only the last token's logits are missing.
            return _Start(group.pages, seq.prompt_len - 1, group.num_chained, group.parent)
        if self.pool.cache is None:
            return _Start([], 0, 0, seq.root)
        pages, parent = self.pool.cache.find(seq.root, seq.token_ids, seq.num_findable)
        return _Start(pages, len(pages) * self.pool.page_len, len(pages), parent)

    def _num_needed(self, seq: Sequence, start: _Start) -> int:
        """Return how many of the free pages `seq` would use up."""
        num_new = self.pool.pages_for(len(seq.token_ids)) - len(start.pages)
        num_cached = sum(not self.pool.num_owners(page) for page in start.pages)
        group = seq.group
        if group is not None and group.pages:
            # The group is an owner too, up to the last who begins.
            num_others = self.pool.num_owners(group.pages[-1]) - (group.num_waiting == 1)
            num_new += num_others > 0 or self._is_findable(group.pages[-1])
        return num_new + num_cached

    def _begin(self, seq: Sequence, start: _Start) -> None:
        self.pool.share(start.pages)
        seq.pages = list(start.pages)
        seq.num_computed = start.num_computed
        seq.num_chained, seq.parent = start.num_chained, start.parent
        group = seq.group
        is_follower = group is not None and seq is not group.reader
        if group is not None and is_follower:
            self._leave(seq, group)
        seq.pages += self.pool.take(self.pool.pages_for(len(seq.token_ids)) - len(seq.pages))
        self._copy_shared(seq)
        if seq.num_cached is None:
            self.share.charge(seq.client, num_prompt=seq.num_pending)
            seq.num_cached = 0 if is_follower else seq.num_computed
            if self.pool.cache is not None and not is_follower:
                self.num_looked_up += seq.prompt_len
                self.num_found += seq.num_cached

    def _release(self, seq: Sequence) -> None:
        self.pool.give_back(seq.pages)
        seq.pages = []
        seq.num_computed = 0

    def _remember(self, seq: Sequence) -> None:
        """Make the pages findable that have become full."""
        cache, P = self.pool.cache, self.pool.page_len
        if cache is None:
            return
        for at in range(seq.num_chained, seq.num_computed // P):
            tokens = seq.token_ids[at * P : (at + 1) * P]
            seq.parent = cache.add(seq.parent, tokens, seq.pages[at])
            seq.num_chained = at + 1

    # Groups

    def _hand_out(self, reader: Sequence, group: Group) -> None:
        """Let those who waited for `reader` to compute the prompt wait for their turn."""
        reader.group = group.reader = None
        if not group.parked:
            return
        group.pages = reader.pages[: self.pool.pages_for(reader.prompt_len)]
        group.num_chained, group.parent = reader.num_chained, reader.parent
        self.pool.share(group.pages)
        self._holding.append(group)
        group.num_waiting = len(group.parked)
        self.num_parked -= len(group.parked)
        for seq in group.parked:
            self.waiting.add(seq)
        group.parked = []

    def _leave(self, seq: Sequence, group: Group) -> None:
        """Take `seq` out of its group: it begins or is gone."""
        seq.group = None
        if seq is group.reader:
            group.reader = group.parked.pop(0) if group.parked else None
            if group.reader is not None:
                self.num_parked -= 1
                self.waiting.add(group.reader)
        elif group.reader is None:
            group.num_waiting -= 1
            if not group.num_waiting and group.pages:
                self._let_go(group)

    def _let_go(self, group: Group) -> None:
        """Give a group's pages up; who has not begun then looks for them in the cache."""
        self._holding.remove(group)
        self.pool.give_back(group.pages)
        group.pages = []


def _slice(seq: Sequence, budget: int) -> Slice:
    return Slice(seq, seq.num_computed, seq.num_computed + min(seq.num_pending, budget))


def _order(seq: Sequence) -> tuple[int, int]:
    return seq.level, seq.number
