"""Steps of few tokens, recorded once for each size and run again in one call (kernels/tape.py).

Not here: steps with long stretches of prompts, in which the time between operators is small.
"""

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from llmlab.kernels.tape import NotRecordable, Tape, TapeMemory, record
from llmlab.serve.adapters import AdapterStore
from llmlab.serve.paged_cache import PagedCache, StepInputs
from llmlab.serve.sequence import Slice

logger = logging.getLogger(__name__)

_MOST_TAPES = 128
_OFTEN = 3
"""Times that a size with parts of prompts, or drafts, is met before it is recorded."""
_MOST_SEEN = 4096
_MOST_TOKENS = 128
"""Of a step; with more, the time between operators is a small part of it."""


@dataclass(frozen=True, slots=True)
class _Recorded:
    inputs: StepInputs
    tape: Tape
    states: Tensor


class Tapes:
    """The tapes of a runner, the least recently used one dropped first.

    Args:
        compute: from a step's inputs to the states (N, E) of its tokens.
        cache: where keys and values lie.
        max_len: most tokens of a sequence.
    """

    def __init__(
        self, compute: Callable[[StepInputs], Tensor], cache: PagedCache, max_len: int
    ) -> None:
        self._compute = compute
        self._cache = cache
        self._most_pages = -(-max_len // cache.page_len)
        self._recorded: OrderedDict[tuple[int, int, bool], _Recorded] = OrderedDict()
        self._seen: Counter[tuple] = Counter()
        self._memory = TapeMemory()  # for all, as steps never overlap
        self._can_record = cache.device.type == "cpu"

    def run(self, slices: list[Slice], adapters: AdapterStore | None = None) -> Tensor | None:
        """Compute a step: states (N, E), good until the next step; None for one too long.

        Steps without an adapter have tapes of their own, so that they pay nothing for adapters.
        """
        num_tokens = sum(part.num_tokens for part in slices)
        if not self._can_record or num_tokens > _MOST_TOKENS:
            return None
        size = (num_tokens, len(slices), adapters is not None)
        known = self._recorded.get(size)
        if known is None:
            if num_tokens > len(slices) and not self._is_usual(size):
                return None  # sizes with parts of prompts seldom come again
            return self._record(size, slices, adapters)
        self._recorded.move_to_end(size)
        known.inputs.fill(slices)
        known.tape.run()
        return known.states

    def _is_usual(self, size: tuple) -> bool:
        """Count a size; return whether it came before."""
        self._seen[size] += 1
        if len(self._seen) > _MOST_SEEN:
            self._seen.clear()
        return self._seen[size] > _OFTEN

    def _record(
        self, size: tuple[int, int, bool], slices: list[Slice], adapters: AdapterStore | None
    ) -> Tensor | None:
        num_tokens, num_seqs, _ = size
        inputs = StepInputs(num_tokens, num_seqs, self._most_pages, self._cache, adapters)
        inputs.fill(slices)
        try:
            tape, states = record(lambda: self._compute(inputs), self._memory)
        except NotRecordable as reason:
            logger.info("steps run operator by operator: %s", reason)
            self._can_record = False
            return None
        self._recorded[size] = _Recorded(inputs, tape, states)
        if len(self._recorded) > _MOST_TAPES:
            self._recorded.popitem(last=False)
        return states
