"""How many prompt tokens a step may take so that running streams keep their pace.

A step that reads a part of a prompt takes longer than one that only decodes, and every running
stream waits for it. `Pace` learns from the times of past steps what a step that only decodes takes
and what a prompt token adds, and answers how many prompt tokens keep a step within `itl_ratio`
times the former. What a token adds depends on how many there are: while decoding waits for memory
the first ones are nearly free. So it is learned where it is used, and a budget never grows beyond
twice what was tried of late.

Steps differ: the first ones warm up, others are held up by the machine. The time of decoding alone
is a median, for each number of streams; what a prompt token adds moves by a part of what was seen.
Where prompts never end, decoding alone is not seen any more and what is known of it ages; so after
`RENEW_AFTER` steps with prompts, `NUM_RENEWING` steps go without.

Not here: a clock (the engine has it).
"""

import math
from collections import deque
from statistics import median

FLOOR = 16
"""Fewest prompt tokens of a step, however slow they are, so that prompts move on."""
WINDOW = 9
"""Steps that the time of decoding alone is the median of."""
RENEW_AFTER = 64
NUM_RENEWING = 3

_TICK_S = 1e-6
"""Shortest step; a clock can be coarser than that."""
_UP, _DOWN = 0.7, 0.25
"""Part of the way, in logarithms, that the cost of a token moves up and down: slow steps are what
this is about, so it learns them sooner than it forgets them."""


class Pace:
    """Learns from observed steps; knows nothing at first and then limits nothing.

    Args:
        itl_ratio: the longest a step may take, above 1, in times of one that only decodes.
    """

    def __init__(self, itl_ratio: float) -> None:
        self._itl_ratio = itl_ratio
        self._alone: dict[int, deque[float]] = {}  # seconds, by number of decodes
        self._token_s: float | None = None
        self._reach = float(FLOOR)  # prompt tokens of a step, the most of late
        self._num_mixed = 0  # steps with prompts since decoding alone was timed
        self._num_renewing = 0

    def observe(self, num_decodes: int, num_prompt_tokens: int, seconds: float) -> None:
        """Learn what a step took.

        Args:
            num_decodes: its slices of a single token, of running sequences.
            num_prompt_tokens: its other tokens.
            seconds: what it took.
        """
        if not num_decodes:
            return
        seconds = max(seconds, _TICK_S)
        if num_prompt_tokens:
            self._observe_mixed(num_decodes, num_prompt_tokens, seconds)
            return
        self._num_mixed = 0
        self._num_renewing = max(0, self._num_renewing - 1)
        self._alone.setdefault(num_decodes, deque(maxlen=WINDOW)).append(seconds)

    def prompt_budget(self, num_decodes: int) -> int | None:
        """Return how many prompt tokens may join `num_decodes` decodes; None is no limit.

        At least `FLOOR`, but 0 where decoding alone has to be timed again.
        """
        alone_s = self._alone_s(num_decodes)
        if self._num_renewing and num_decodes:
            return 0
        if alone_s is None or not num_decodes:
            return None
        most = 2 * self._reach
        if self._token_s is not None:
            most = min(most, (self._itl_ratio - 1) * alone_s / self._token_s)
        return max(FLOOR, int(most))

    def _observe_mixed(self, num_decodes: int, num_prompt_tokens: int, seconds: float) -> None:
        self._num_mixed += 1
        if self._num_mixed >= RENEW_AFTER:
            self._num_mixed, self._num_renewing = 0, NUM_RENEWING
            self._alone.pop(num_decodes, None)
        alone_s = self._alone_s(num_decodes)
        if alone_s is None or num_prompt_tokens < FLOOR:  # too few to tell from noise
            return
        self._reach = max(num_prompt_tokens, 0.9 * self._reach)
        token_s = max(seconds - alone_s, 0.01 * alone_s) / num_prompt_tokens
        if self._token_s is None:
            self._token_s = token_s
            return
        ratio = token_s / self._token_s
        self._token_s *= math.exp(math.log(ratio) * (_UP if ratio > 1 else _DOWN))

    def _alone_s(self, num_decodes: int) -> float | None:
        """Return the seconds of decoding alone, of the nearest number of streams that is known."""
        nearest = min(self._alone, key=lambda known: abs(known - num_decodes), default=None)
        return None if nearest is None else median(self._alone[nearest])
