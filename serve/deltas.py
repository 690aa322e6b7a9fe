"""What the engine answers: deltas while a request runs, one output when it is done.

Not here: JSON shapes (the HTTP layer writes those). Torch-free.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from llmlab.errors import RequestError

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
    num_cached_tokens: int = 0
    """On the first delta: prompt tokens whose keys and values were already in the cache. Of several
    requests submitted as one group, the one that computes the prompt has the number."""
    embedding: tuple[float, ...] | None = None
    """On the last delta of a request that asked for one: (E,), of length 1."""
    error: RequestError | None = None
    """Why the request could not go on, with finish_reason "abort": its grammar ran into a limit."""


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
    embedding: tuple[float, ...] | None = None
    """The prompt's, (E,), of length 1, when `SamplingParams.pooling` asked for it."""
    error: RequestError | None = None
    """Why it could not go on, with finish_reason "abort"."""
    first_token_s: float | None = None
    """Seconds from arrival to the first token; None when none was generated."""
    total_s: float = 0.0
    """Seconds from arrival to the end."""

    @classmethod
    def from_deltas(
        cls,
        prompt_ids: Iterable[int],
        deltas: Sequence[Delta],
        *,
        first_token_s: float | None = None,
        total_s: float = 0.0,
    ) -> "Output":
        """Join all deltas of a finished request.

        Raises:
            ValueError: the last delta has no finish_reason.
        """
        reason = deltas[-1].finish_reason if deltas else None
        if reason is None:
            raise ValueError("the request is not finished: its last delta has no finish_reason")
        return cls(
            prompt_token_ids=tuple(prompt_ids),
            text="".join(delta.text for delta in deltas),
            token_ids=tuple(i for delta in deltas for i in delta.token_ids),
            finish_reason=reason,
            logprobs=tuple(entry for delta in deltas for entry in delta.logprobs),
            prompt_logprobs=deltas[0].prompt_logprobs,
            embedding=deltas[-1].embedding,
            error=deltas[-1].error,
            num_cached_tokens=deltas[0].num_cached_tokens,
            first_token_s=first_token_s,
            total_s=total_s,
        )


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters of a running engine; totals count from its start."""

    running: int
    """Requests in the batch."""
    waiting: int
    """Requests that wait for their turn."""
    free_pages: int
    """Pages that no request owns, cached ones included."""
    cached_pages: int
    """Those of them whose content a new prompt can still use."""
    num_pages: int
    prompt_tokens: int
    """Total prompt tokens of all requests accepted, the prompt of a group counted once."""
    prefix_queries: int
    """Total prompt tokens that were looked for in the prefix cache."""
    prefix_hits: int
    """Those of them that were in it."""
    generated_tokens: int
    """Total tokens sampled."""
    requests: int
    """Total requests accepted."""
    preemptions: int
    """Total times a request gave its pages back and was computed again."""
    copies: int
    """Total pages copied because a request was to write into one that others use too."""
    drafted_tokens: int
    """Total tokens guessed and checked."""
    accepted_tokens: int
    """Total of those that were right."""
    steps: int
    """Total forward passes."""
