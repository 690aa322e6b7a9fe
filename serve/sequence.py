"""One request as the scheduler sees it: its tokens, how many are computed, the pages it owns.

Not here: its text (detokenize.py), who asked for it (engine.py).
"""

import secrets
from collections import abc
from dataclasses import dataclass, field
from typing import Self

from llmlab.serve.grammar.state import GrammarState
from llmlab.serve.params import SamplingParams
from llmlab.serve.prefix_cache import Parent


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
    grammar: GrammarState | None = None
    """Where it stands in the grammar it follows."""
    draft: tuple[int, ...] = ()
    """Tokens that may come next; the next step checks as many as it has room for."""
    client: str = ""
    """Who asked for it; the engine is fair between clients."""
    adapter: str | None = None
    """What keeps its keys and values apart from those of others: the adapter that computes them."""
    is_streamed: bool = True
    """Someone reads its tokens as they come, so prompts must not hold them up."""
    num_computed: int = 0
    """Leading tokens whose keys and values are in the pages."""
    pages: list[int] = field(default_factory=list)
    """Owned pages, in the order of the positions they hold."""
    num_scored: int = 1
    """Leading prompt tokens that need no log-probability any more; nothing predicts the first."""
    num_pooled: int = 0
    """Leading prompt tokens whose states are in the embedding already."""
    num_cached: int | None = None
    """Prompt tokens that were in the cache when it first got pages; None before."""
    level: int = 0
    """Its effective priority, lower is earlier."""
    group: "Group | None" = None
    """The sequences that share its prompt, until it has that prompt's pages."""
    num_chained: int = 0
    """Leading pages that the prefix cache has been told about."""
    parent: Parent = (None, None)
    """The prefix cache's entry of the last of them."""

    def __post_init__(self) -> None:
        self.level = self.params.priority

    @classmethod
    def of(
        cls,
        number: int,
        prompt_ids: abc.Sequence[int],
        params: SamplingParams,
        *,
        max_model_len: int,
        model_stop_ids: frozenset[int],
        grammar: GrammarState | None,
        adapter: str | None,
        client: str,
        is_streamed: bool,
    ) -> Self:
        """Return the sequence of a new request.

        Args:
            number: its identity.
            prompt_ids: its prompt.
            params: say when it ends and what its random numbers come from.
            max_model_len: most tokens of prompt and answer together.
            model_stop_ids: token ids that end it unless it ignores them.
            grammar: the field, as the next three.
            adapter: its key.
            client: who asks.
            is_streamed: whether someone reads along.
        """
        num_prompt, most = len(prompt_ids), params.max_tokens
        own_stops = frozenset() if params.ignore_eos else model_stop_ids
        return cls(
            number=number,
            prompt_len=num_prompt,
            token_ids=list(prompt_ids),
            params=params,
            max_len=max_model_len if most is None else num_prompt + most,
            seed=secrets.randbits(63) if params.seed is None else params.seed,
            stop_ids=own_stops.union(params.stop_token_ids),
            grammar=grammar,
            client=client,
            adapter=adapter,
            is_streamed=is_streamed,
        )

    @property
    def root(self) -> Parent:
        """Where its pages' chain begins in the prefix cache."""
        return self.params.cache_salt, self.adapter

    @property
    def num_pending(self) -> int:
        """Tokens not computed yet; 1 while decoding."""
        return len(self.token_ids) - self.num_computed

    @property
    def num_generated(self) -> int:
        """Tokens after the prompt."""
        return len(self.token_ids) - self.prompt_len

    @property
    def num_findable(self) -> int:
        """Most leading tokens that may come from the cache.

        One must be computed, for its logits give the next token; and where the prompt's
        log-probabilities are wanted, so must all that predict a token not scored yet. The same
        holds for the states of which the mean is wanted.
        """
        if self.params.prompt_logprobs is not None and self.num_scored < self.prompt_len:
            return self.num_scored - 1
        if self.params.pooling == "mean":
            return min(self.num_pooled, len(self.token_ids) - 1)
        return len(self.token_ids) - 1


@dataclass(slots=True, eq=False)
class Group:
    """Sequences with one prompt, which the first of them, the reader, computes for all.

    The others are parked until then; after that they wait for their turn like anyone, and the
    group owns the prompt's pages for them, so that these outlive the reader.
    """

    reader: Sequence | None
    """The one that computes the prompt; None once it is computed."""
    parked: list[Sequence]
    """Sequences that wait for the reader."""
    num_waiting: int = 0
    """Sequences that the prompt has been computed for and that have not begun."""
    pages: list[int] = field(default_factory=list)
    """The prompt's, while some have not begun; none where memory was short."""
    num_chained: int = 0
    """Leading pages that the prefix cache knows."""
    parent: Parent = (None, None)
    """The cache's entry of the last of them."""


@dataclass(frozen=True, slots=True)
class Slice:
    """The tokens `start` to `end` of a sequence, to be computed in one step, and a draft."""

    seq: Sequence
    start: int
    end: int
    draft: tuple[int, ...] = ()
    """Tokens that may follow, to be checked; only where the slice ends with its sequence."""

    @property
    def reach(self) -> int:
        """Where the tokens to compute end, the draft included."""
        return self.end + len(self.draft)

    @property
    def num_tokens(self) -> int:
        """Tokens to compute."""
        return self.reach - self.start

    @property
    def is_last(self) -> bool:
        """True when it ends where the sequence does: nothing is left to compute."""
        return self.end == len(self.seq.token_ids)

    @property
    def wants_token(self) -> bool:
        """True when its last token predicts one to append."""
        return self.is_last and self.end < self.seq.max_len


@dataclass(frozen=True, slots=True)
class Step:
    """What one forward pass computes."""

    slices: list[Slice]
    """Of different sequences, those with a single token first."""
    copies: list[tuple[int, int]]
    """Pages to copy before, from and to."""
    num_decodes: int = 0
    """Leading slices that add tokens to a running sequence."""

    @property
    def num_decode_tokens(self) -> int:
        """Tokens of these slices, drafts included."""
        return sum(part.num_tokens for part in self.slices[: self.num_decodes])

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the other slices."""
        return sum(part.num_tokens for part in self.slices[self.num_decodes :])
