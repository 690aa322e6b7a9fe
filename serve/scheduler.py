"""Which tokens of which sequences are computed next. Pure Python, no tensors, no clock.

One step is a list of slices under one token budget. Sequences that need a single token come
first, so a long prompt never stops the others; prompts share what is left in order of arrival,
in chunks when they are longer. A sequence takes the pages of all its known tokens when it is
admitted, so only decoding can run out of pages; the newest sequence then gives all of its pages
back and is computed again later, its generated tokens included.

Two facts make this live: `running` followed by `waiting` is always in order of arrival, and no
sequence is accepted that the whole pool could not hold. So the oldest sequence gets a token at
every step, and everyone becomes the oldest.

Not here: sampling and when a sequence is finished (engine.py).
Source: continuous batching, Orca (OSDI 2022); chunked prefill, Sarathi-Serve, arXiv 2403.02310.
"""

from collections import deque

from llmlab.serve.pages import PagePool
from llmlab.serve.sequence import Sequence, Slice


class Scheduler:
    """First come, first served.

    Args:
        pool: the pages sequences own.
        max_batch_tokens: most tokens in one step; above `max_running`, so that prompts move on
            beside a full batch of decodes.
        max_running: most sequences that own pages.
    """

    def __init__(self, pool: PagePool, *, max_batch_tokens: int, max_running: int) -> None:
        self.pool = pool
        self.max_batch_tokens = max_batch_tokens
        self.max_running = max_running
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self.num_preemptions = 0

    @property
    def max_len(self) -> int:
        """Tokens of the longest sequence that the pool can hold."""
        return self.pool.num_pages * self.pool.page_len

    def add(self, seq: Sequence) -> None:
        """Queue a sequence.

        Raises:
            ValueError: it can outgrow the pool, so it might never finish.
        """
        if seq.max_len > self.max_len:
            raise ValueError(f"sequence of {seq.max_len} tokens, the pool holds {self.max_len}")
        self.waiting.append(seq)

    def schedule(self) -> list[Slice]:
        """Choose the next step, single tokens first.

        The caller computes all of it, then calls `computed`.

        Returns:
            Slices of different sequences, at most `max_batch_tokens` tokens together; empty when
            there is nothing to do.
        """
        before = self.num_preemptions
        slices = self._decodes()
        budget = self.max_batch_tokens - len(slices)
        for seq in self.running:
            if seq.num_pending > 1 and budget:
                slices.append(_slice(seq, budget))
                budget -= slices[-1].num_tokens
        while budget and self.num_preemptions == before and self._admit():
            slices.append(_slice(self.running[-1], budget))
            budget -= slices[-1].num_tokens
        return slices

    def computed(self, slices: list[Slice]) -> None:
        """Record that a step is done; before any of its sequences gets its next token."""
        for part in slices:
            part.seq.num_computed = part.end

    def remove(self, seq: Sequence) -> None:
        """Forget a sequence, finished or aborted, and free its pages."""
        if seq in self.running:
            self.running.remove(seq)
        else:
            self.waiting.remove(seq)
        self._release(seq)

    def _decodes(self) -> list[Slice]:
        slices: list[Slice] = []
        at = 0
        while at < len(self.running):  # `_grow` can shorten the list, only behind `at`
            seq = self.running[at]
            if seq.num_pending == 1 and self._grow(seq):
                slices.append(_slice(seq, 1))
            at += 1
        return slices

    def _grow(self, seq: Sequence) -> bool:
        """Take the page of the next token; False when `seq` itself had to go."""
        missing = self.pool.pages_for(len(seq.token_ids)) - len(seq.pages)
        while missing > self.pool.num_free:
            newest = self.running.pop()
            self._release(newest)
            self.waiting.appendleft(newest)
            self.num_preemptions += 1
            if newest is seq:
                return False
        seq.pages += self.pool.take(missing)
        return True

    def _admit(self) -> bool:
        """Start the first waiting sequence if there is a place for it.

        One page for each running sequence stays free: a newcomer that takes the last page is
        thrown out as soon as an older one reaches the end of its page.
        """
        if not self.waiting or len(self.running) >= self.max_running:
            return False
        seq = self.waiting[0]
        needed = self.pool.pages_for(len(seq.token_ids))
        if needed + len(self.running) > self.pool.num_free:
            return False
        self.running.append(self.waiting.popleft())
        seq.pages = self.pool.take(needed)
        return True

    def _release(self, seq: Sequence) -> None:
        self.pool.give_back(seq.pages)
        seq.pages = []
        seq.num_computed = 0


def _slice(seq: Sequence, budget: int) -> Slice:
    return Slice(seq, seq.num_computed, seq.num_computed + min(seq.num_pending, budget))
