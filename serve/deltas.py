"""What the engine answers: deltas while a request runs, one output when it is done.

Not here: JSON shapes (the HTTP layer writes those). Torch-free.
"""

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "abort"]
"""stop: a stop token or stop string; length: max_tokens or the context; abort: cancelled."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token's log-probability under the model itself: no temperature, penalty or bias."""

    token_id: int
    token_bytes: bytes
    """The token's own bytes; alone they may be part of a character."""
    logprob: float
    """Natural logarithm."""
    rank: int
    """1 for the likeliest token of the vocabulary."""
    top: tuple["TokenLogprob", ...] = ()
    """As many most likely tokens as were asked for, likeliest first; their own `top` is empty."""

    @property
    def token(self) -> str:
        """The token as text; bytes that are no UTF-8 on their own show as U+FFFD."""
        return self.token_bytes.decode("utf-8", errors="replace")


@dataclass(frozen=True, slots=True)
class Delta:
    """What one step added to a request.

    The texts of all deltas, concatenated, are the text of the `Output`; the same holds for token
    ids and logprobs. Text can lag behind the tokens: half a character waits for its other half and
    what may become a stop string waits until it is none. The last delta, and only it, has a
    `finish_reason`; it may carry no token (abort) and flushes the text held back.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    """Tokens generated in this step, a final stop token included (whose text is left out)."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each of `token_ids` when `SamplingParams.logprobs` asked for them, else empty."""
    finish_reason: FinishReason | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    """On the first delta of a request that asked for them: one for each prompt token, None for the
    first one, which nothing predicts."""


@dataclass(frozen=True, slots=True)
class Output:
    """A finished request."""

    prompt_token_ids: tuple[int, ...]
    text: str
    """What was generated, without special tokens and without the stop string."""
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    num_cached_tokens: int = 0
    """Prompt tokens whose keys and values were already in the cache."""
    first_token_s: float | None = None
    """Seconds from arrival to the first token; None when none was generated."""
    total_s: float = 0.0
    """Seconds from arrival to the end."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters of a running engine; totals count from its start."""

    running: int
    """Requests in the batch."""
    waiting: int
    """Requests that wait for their turn."""
    free_pages: int
    num_pages: int
    prompt_tokens: int
    """Total prompt tokens of all requests admitted, each counted once."""
    generated_tokens: int
    """Total tokens sampled."""
    requests: int
    """Total requests accepted."""
    preemptions: int
    """Total times a request gave its pages back and was computed again."""
    steps: int
    """Total forward passes."""
