"""One request as the scheduler sees it: its tokens, how many are computed, the pages it owns.

Not here: its text (detokenize.py), who asked for it (engine.py).
"""

from dataclasses import dataclass, field

from llmlab.serve.params import SamplingParams


@dataclass(slots=True, eq=False)
class Sequence:
    """The tokens of one request; `num_computed` chases `len(token_ids)`, step by step.

    There are no phases: reading a prompt, decoding and computing again after a preemption are all
    "some tokens are not computed yet".
    """

    number: int
    """Identity within the engine, in order of arrival."""
    prompt_len: int
    token_ids: list[int]
    """The prompt, then what was generated."""
    params: SamplingParams
    max_len: int
    """Tokens at which it ends for length, prompt included."""
    seed: int
    """What its random numbers come from."""
    stop_ids: frozenset[int] = frozenset()
    """Token ids that end it."""
    adapter: str | None = None
    """What keeps its keys and values apart from those of others: the adapter that computes them."""
    num_computed: int = 0
    """Leading tokens whose keys and values are in the pages."""
    pages: list[int] = field(default_factory=list)
    """Owned pages, in the order of the positions they hold."""
    num_scored: int = 1
    """Leading prompt tokens that need no log-probability any more; nothing predicts the first."""

    @property
    def num_pending(self) -> int:
        """Tokens not computed yet; 1 while decoding."""
        return len(self.token_ids) - self.num_computed

    @property
    def num_generated(self) -> int:
        """Tokens after the prompt."""
        return len(self.token_ids) - self.prompt_len


@dataclass(frozen=True, slots=True)
class Slice:
    """The tokens `start` to `end` of a sequence, to be computed in one step."""

    seq: Sequence
    start: int
    end: int

    @property
    def num_tokens(self) -> int:
        """Tokens to compute."""
        return self.end - self.start

    @property
    def is_last(self) -> bool:
        """True when it ends where the sequence does: nothing is left to compute."""
        return self.end == len(self.seq.token_ids)

    @property
    def wants_token(self) -> bool:
        """True when its last token predicts one to append."""
        return self.is_last and self.end < self.seq.max_len
