"""What came of one request: when it was sent, when its text came, how many tokens it had.

Not here: sending it (client.py), statistics over many (measures.py).
"""

import itertools
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Trace:
    """One request. Moments are seconds of `time.perf_counter`."""

    sent_s: float
    end_s: float
    """When its answer ended, or failed."""
    chunk_s: tuple[float, ...] = ()
    """When each event with text came. A server may put several tokens into one."""
    num_asked: int = 0
    """Tokens that the answer was to have."""
    num_prompt: int = 0
    """Tokens of the prompt, as the server counts them."""
    num_output: int = 0
    """Tokens of the answer, as the server counts them; its events, where it does not."""
    num_cached: int = 0
    """Prompt tokens that the server had in its prefix cache, where it tells."""
    text: str = ""
    error: str | None = None
    """What went wrong; None for an answer that is complete."""
    status: int | None = None
    """The HTTP status, where that is what went wrong."""

    @property
    def ttft_s(self) -> float | None:
        """Seconds to the first text (time to first token); None when none came."""
        return self.chunk_s[0] - self.sent_s if self.chunk_s else None

    @property
    def itl_s(self) -> list[float]:
        """Seconds between events with text, one after the other (inter-token latency)."""
        return [b - a for a, b in itertools.pairwise(self.chunk_s)]

    @property
    def tpot_s(self) -> float | None:
        """Seconds per token after the first, whatever their events; None for a single token."""
        if not self.chunk_s or self.num_output < 2:
            return None
        return (self.chunk_s[-1] - self.chunk_s[0]) / (self.num_output - 1)

    @property
    def e2e_s(self) -> float:
        """Seconds from sending to the end."""
        return self.end_s - self.sent_s
