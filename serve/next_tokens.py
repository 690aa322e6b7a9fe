"""From logits to tokens: grammar, sampling, how far a draft was right, log-probabilities.

Every slice that ends where its sequence does has a row of logits for its last token and one for
each token of its draft. All rows are sampled together, each as if the draft up to it were the
sequence's own text; those up to the first draft token that was not sampled count.
Not here: where the logits come from (runner.py), what the tokens mean (engine.py).
"""

import math
from collections import abc
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from llmlab.errors import RequestError
from llmlab.model.sampling import SamplingRows, sample, token_logprobs
from llmlab.serve.deltas import TokenLogprob
from llmlab.serve.grammar.bitmask import apply_bitmask
from llmlab.serve.grammar.state import GrammarState
from llmlab.serve.sequence import Sequence, Slice
from llmlab.tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class Computed:
    """What a step found out about one slice."""

    token_ids: tuple[int, ...] = ()
    """The next tokens: one, and as many more as its draft was right; none when the slice ends
    before the last known token."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """Theirs, when the request wants them."""
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """Of the prompt tokens that follow the slice's tokens, when the request wants them."""
    pooled: Tensor | None = None
    """Sum of the states not pooled yet, or the last one, (E,), float32, when the request wants an
    embedding."""
    failure: RequestError | None = None
    """Why there is no next token and the request cannot go on."""


@dataclass(slots=True)
class _Row:
    """A row of logits: the next token of a sequence behind a part of its draft."""

    seq: Sequence
    drafted: tuple[int, ...]
    """The draft tokens that are taken for its text."""
    is_usable: bool = True
    """False behind a draft token that its grammar does not allow."""
    must_end: bool = False
    """True where its grammar allows nothing but a stop token."""

    @property
    def num_generated(self) -> int:
        return self.seq.num_generated + len(self.drafted)


class NextTokens:
    """Chooses tokens.

    Args:
        tokenizer: bounds what is sampled and gives tokens their bytes.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def choose(self, parts: abc.Sequence[Slice], logits: Tensor) -> list[Computed]:
        """Choose the next tokens of slices.

        Args:
            parts: slices that want a token.
            logits: (rows, V), float32, `1 + len(draft)` rows for each slice; not changed.
        """
        rows = [
            _Row(part.seq, part.draft[:count])
            for part in parts
            for count in range(len(part.draft) + 1)
        ]
        # A vocabulary padded for speed has ids that no text belongs to; they are never chosen.
        named = logits[:, : self._tokenizer.vocab_size]
        named, failures = _within_grammars(parts, rows, named)
        ids = sample(named, _settings(rows)).tolist()
        results, first = [], 0
        for number, part in enumerate(parts):
            end = first + len(part.draft) + 1
            if number in failures:
                results.append(Computed(failure=failures[number]))
            else:
                count = _num_right(part.draft, ids[first:end], rows[first:end]) + 1
                own = slice(first, first + count)
                results.append(self._found(part, ids[own], logits[own]))
            first = end
        return results

    def score(self, token_ids: list[int], logits: Tensor, num_top: int) -> tuple[TokenLogprob, ...]:
        """Describe one token a row of logits (B, V), each with the `num_top` most likely ones.

        The ids of a padded vocabulary have their share of the probability, as the model gives it,
        but are no alternatives: as many more are asked for, and left out.
        """
        num_nameless = logits.shape[1] - self._tokenizer.vocab_size
        num_asked = num_top + num_nameless if num_top else 0
        found = token_logprobs(logits, torch.tensor(token_ids, device=logits.device), num_asked)
        tops = zip(found.top_ids.tolist(), found.top_logprobs.tolist(), strict=True)
        return tuple(
            self._entry(token_id, value, self._named(zip(*top, strict=True), num_top))
            for token_id, value, top in zip(token_ids, found.sampled.tolist(), tops, strict=True)
        )

    def _found(self, part: Slice, token_ids: list[int], logits: Tensor) -> Computed:
        num_top = part.seq.params.logprobs
        logprobs = () if num_top is None else self.score(token_ids, logits, num_top)
        return Computed(tuple(token_ids), logprobs)

    def _named(self, top: abc.Iterable[tuple[int, float]], count: int) -> tuple[TokenLogprob, ...]:
        named = (pair for pair in top if pair[0] < self._tokenizer.vocab_size)
        return tuple(self._entry(*pair) for pair in islice(named, count))

    def _entry(
        self, token_id: int, value: float, top: tuple[TokenLogprob, ...] = ()
    ) -> TokenLogprob:
        return TokenLogprob(token_id, self._tokenizer.token_bytes(token_id), value, top)


def _num_right(draft: tuple[int, ...], ids: list[int], rows: list[_Row]) -> int:
    """Return how many leading tokens of a draft are those that were sampled."""
    for count, (drafted, sampled) in enumerate(zip(draft, ids, strict=False)):
        if drafted != sampled or not rows[count + 1].is_usable:
            return count
    return len(draft)


def _within_grammars(
    parts: abc.Sequence[Slice], rows: list[_Row], logits: Tensor
) -> tuple[Tensor, dict[int, RequestError]]:
    """Forbid what grammars forbid; return logits and, by slice, why one cannot go on."""
    failures: dict[int, RequestError] = {}
    masks: list[np.ndarray] = []
    places: list[int] = []
    first = 0
    for number, part in enumerate(parts):
        state = part.seq.grammar
        if state is not None:
            try:
                found = _masks(state, part.draft)
            except RequestError as error:
                failures[number], found = error, []
            masks += found
            places += range(first, first + len(found))
            for row in rows[first + max(len(found), 1) : first + len(part.draft) + 1]:
                row.is_usable = False
        first += len(part.draft) + 1
    if masks:
        logits = logits.clone()
        for place, mask in zip(places, masks, strict=True):
            rows[place].must_end = _is_end(mask, rows[place].seq.stop_ids)
        bitmask = torch.from_numpy(np.stack(masks)).to(logits.device)
        apply_bitmask(logits, bitmask, places)
    return logits, failures


def _masks(state: GrammarState, draft: tuple[int, ...]) -> list[np.ndarray]:
    """Return what may come behind each part of a draft, as far as the grammar allows the draft."""
    masks, num_taken = [state.allowed()], 0
    try:
        for token_id in draft:
            if not _is_allowed(masks[-1], token_id) or not state.accept(token_id):
                break
            num_taken += 1
            if state.is_finished:
                break
            masks.append(state.allowed())
    finally:
        state.rollback(num_taken)
    return masks


def _is_allowed(mask: np.ndarray, token_id: int) -> bool:
    return bool(mask[token_id // 32] >> (token_id % 32) & 1)


def _is_end(mask: np.ndarray, stop_ids: frozenset[int]) -> bool:
    if np.count_nonzero(mask) > len(stop_ids):  # words, so at least as many tokens
        return False
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    return all(token_id in stop_ids for token_id in np.flatnonzero(bits).tolist())


def _settings(rows: list[_Row]) -> SamplingRows:
    """Return what the sampler needs to know of each row."""
    params = [row.seq.params for row in rows]
    penalised = any(
        (p.repetition_penalty, p.presence_penalty, p.frequency_penalty) != (1, 0, 0) for p in params
    )
    return SamplingRows(
        temperature=[p.temperature for p in params],
        seed=[row.seq.seed for row in rows],
        num_sampled=[row.num_generated for row in rows],
        top_k=[p.top_k for p in params],
        top_p=[p.top_p for p in params],
        min_p=[p.min_p for p in params],
        repetition_penalty=[p.repetition_penalty for p in params] if penalised else None,
        presence_penalty=[p.presence_penalty for p in params] if penalised else None,
        frequency_penalty=[p.frequency_penalty for p in params] if penalised else None,
        prompt_ids=[row.seq.token_ids[: row.seq.prompt_len] for row in rows] if penalised else None,
        output_ids=[_output(row) for row in rows] if penalised else None,
        logit_bias=[_bias(row) for row in rows],
    )


def _output(row: _Row) -> list[int]:
    return [*row.seq.token_ids[row.seq.prompt_len :], *row.drafted]


def _bias(row: _Row) -> abc.Mapping[int, float]:
    params = row.seq.params
    if row.num_generated >= params.min_tokens or row.must_end:
        return params.logit_bias
    return {**params.logit_bias, **dict.fromkeys(row.seq.stop_ids, -math.inf)}
