"""The one sampler, for `generate` and for the server: logits to token ids, row by row.

Every row has its own settings, and its result does not depend on the other rows of the batch: the
randomness of a row is one uniform number, a hash of (seed, tokens sampled so far), turned into a
token by the inverse of the cumulative distribution. Probabilities are float32, sums float64.

Order, for rows with temperature > 0: logit bias, penalties, temperature, top-k, top-p, min-p.
Not here: when to stop, what the ids mean, grammar constraints. Sources: arXiv:1904.09751 (top-p),
arXiv:2407.01082 (min-p), arXiv:1909.05858 (repetition penalty).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.errors import ModelError

_FIRST_CANDIDATES = 1024
_BLOCK = 256
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, kw_only=True)
class SamplingRows:
    """Settings of B rows; every sequence has length B, and None switches a setting off."""

    temperature: Sequence[float]
    """Divides the logits; 0 takes the most likely token."""
    seed: Sequence[int]
    """With `num_sampled`, decides the row's random number."""
    num_sampled: Sequence[int]
    """Tokens sampled for the row so far."""
    top_k: Sequence[int] | None = None
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: Sequence[float] | None = None
    """Keep the fewest most likely tokens whose probabilities reach p; 1 keeps all."""
    min_p: Sequence[float] | None = None
    """Keep tokens at least this fraction as likely as the most likely one; 0 keeps all."""
    repetition_penalty: Sequence[float] | None = None
    """Divides positive and multiplies negative logits of tokens in prompt or output; 1 is off."""
    presence_penalty: Sequence[float] | None = None
    """Subtracted once from the logit of every token in the output; 0 is off."""
    frequency_penalty: Sequence[float] | None = None
    """Subtracted from a token's logit for each time it is in the output; 0 is off."""
    prompt_ids: Sequence[Sequence[int]] | None = None
    """Token ids of the prompt; needed with `repetition_penalty`."""
    output_ids: Sequence[Sequence[int]] | None = None
    """Token ids sampled so far; needed with a penalty."""
    logit_bias: Sequence[Mapping[int, float]] | None = None
    """Added to the logits of the tokens named."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and len(value) != len(self):
                raise ModelError(
                    f"SamplingRows.{field.name} has {len(value)} rows, temperature has "
                    f"{len(self)}; pass one value for each row"
                )

    def __len__(self) -> int:
        return len(self.temperature)


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural logarithms of the model's own probabilities, before any sampling setting."""

    sampled: Tensor
    """(B,), float32: of the token that was chosen."""
    top_ids: Tensor
    """(B, n), int64: the n most likely tokens, most likely first."""
    top_logprobs: Tensor
    """(B, n), float32: theirs."""


def sample(logits: Tensor, rows: SamplingRows) -> Tensor:
    """Choose one token for each row.

    Args:
        logits: (B, V), any float dtype; not changed.
        rows: settings of the B rows.

    Returns:
        (B,), int64, on the device of the logits.

    Raises:
        ModelError: the logits do not have one row for each row of settings.
    """
    if logits.dim() != 2 or logits.shape[0] != len(rows):
        raise ModelError(
            f"logits has shape {tuple(logits.shape)} for {len(rows)} rows of settings; pass (B, V)"
        )
    scores = _with_penalties(_with_bias(logits.float(), rows), rows)  # (B, V)
    random_rows = [row for row, temperature in enumerate(rows.temperature) if temperature > 0]
    if len(random_rows) == len(rows):
        return _sample_random(scores, rows, random_rows)
    ids = scores.argmax(dim=-1)  # (B,)
    if random_rows:
        where = _index(random_rows, scores)
        ids[where] = _sample_random(scores[where], rows, random_rows)
    return ids


def token_logprobs(logits: Tensor, ids: Tensor, num_top: int = 0) -> TokenLogprobs:
    """Return log-probabilities of the chosen tokens and of the most likely ones.

    Args:
        logits: (B, V), as the model gave them.
        ids: (B,), the chosen tokens.
        num_top: n, how many of the most likely tokens to report.
    """
    logprobs = logits.float().log_softmax(dim=-1)  # (B, V)
    top = logprobs.topk(num_top, dim=-1)
    return TokenLogprobs(
        sampled=logprobs.gather(1, ids[:, None])[:, 0],
        top_ids=top.indices,
        top_logprobs=top.values,
    )


def uniform(seed: int, num_sampled: int) -> float:
    """Return a number in [0, 1) that depends on nothing but its two arguments.

    The finaliser of SplitMix64 (Steele, Lea, Flood 2014, doi:10.1145/2660193.2660195) over the
    seed, then over the counter, so that neighbouring seeds and counters are unrelated.
    """
    return (_mix(_mix(seed) + num_sampled) >> 11) / 2**53


def _mix(number: int) -> int:
    mask = 2**64 - 1
    number = (number + 0x9E3779B97F4A7C15) & mask
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & mask
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & mask
    return number ^ (number >> 31)


def _with_bias(scores: Tensor, rows: SamplingRows) -> Tensor:
    if not rows.logit_bias or not any(rows.logit_bias):
        return scores
    triples = [
        (row, token_id, bias)
        for row, biases in enumerate(rows.logit_bias)
        for token_id, bias in biases.items()
    ]
    at_rows, at_ids, biases = zip(*triples, strict=True)
    place = (_index(at_rows, scores), _index(at_ids, scores))
    added = torch.tensor(biases, dtype=scores.dtype, device=scores.device)
    return scores.index_put(place, added, accumulate=True)


def _with_penalties(scores: Tensor, rows: SamplingRows) -> Tensor:
    B = len(rows)
    repetition = rows.repetition_penalty or [1.0] * B
    presence = rows.presence_penalty or [0.0] * B
    frequency = rows.frequency_penalty or [0.0] * B
    penalised = [
        row for row in range(B) if (repetition[row], presence[row], frequency[row]) != (1, 0, 0)
    ]
    if penalised:
        scores = scores.clone()
    for row in penalised:
        counts = Counter(rows.output_ids[row] if rows.output_ids else ())
        prompt = rows.prompt_ids[row] if rows.prompt_ids and repetition[row] != 1 else ()
        seen = _index(tuple(counts.keys() | set(prompt)), scores)
        at_seen = scores[row, seen]
        penalty = repetition[row]
        scores[row, seen] = torch.where(at_seen > 0, at_seen / penalty, at_seen * penalty)
        said = _index(tuple(counts), scores)
        times_said = _index(tuple(counts.values()), scores)
        scores[row, said] -= frequency[row] * times_said + presence[row]
    return scores


def _sample_random(scores: Tensor, rows: SamplingRows, which: list[int]) -> Tensor:
    """Sample the rows `which`; scores (R, V) holds only those rows; returns (R,)."""
    V = scores.shape[1]
    draws = [uniform(rows.seed[row], rows.num_sampled[row]) for row in which]
    top_k = [k if 0 < k < V else V for k in _picked(rows.top_k, which, 0)]
    top_p = _picked(rows.top_p, which, 1.0)
    min_p = _picked(rows.min_p, which, 0.0)
    temperature = _column([rows.temperature[row] for row in which], scores)
    # Less the largest first, so that a tiny temperature does not overflow.
    scores = (scores - scores.amax(dim=-1, keepdim=True)).div_(temperature)
    probs = scores.softmax(dim=-1)  # (R, V)
    if min(top_k) < V or min(top_p) < 1 or max(min_p) > 0:
        # Each filter keeps what is at least as likely as some token, equal tokens alike.
        least = _column(min_p, probs) * probs.amax(dim=-1, keepdim=True)  # (R, 1)
        if min(top_k) < V or min(top_p) < 1:
            least = torch.maximum(least, _least_of_nucleus(probs, top_k, top_p))
        probs.masked_fill_(probs < least, 0)
    return _invert(probs, draws)


def _least_of_nucleus(probs: Tensor, top_k: list[int], top_p: list[float]) -> Tensor:
    """Return the probability (R, 1) of the least likely token that top-k, then top-p keep."""
    V = probs.shape[1]
    best = _likeliest(probs, top_k, top_p)  # (R, C), in falling order
    limit = _column(top_k, probs, torch.int64)
    rank = torch.arange(best.shape[1], device=best.device)  # (C,)
    kept = best.masked_fill(rank >= limit, 0).double()
    # Top-p counts shares of what top-k left; without top-k the candidates are a part of 1.
    total = torch.where(limit < V, kept.sum(dim=-1, keepdim=True), 1.0)
    before = kept.cumsum(dim=-1) - kept
    share = _column(top_p, probs, torch.float64)
    kept = kept.masked_fill((before >= share * total) & (share < 1), 0)
    last = (kept > 0).sum(dim=-1, keepdim=True).clamp(min=1) - 1  # (R, 1)
    is_off = (limit >= V) & (share >= 1)
    return best.gather(1, last).masked_fill(is_off, 0)


def _likeliest(probs: Tensor, top_k: list[int], top_p: list[float]) -> Tensor:
    """Return the largest probabilities in falling order, as few as hold what will be kept: (R, C).

    Sorting a whole vocabulary costs more than a small model's step; nearly always the likeliest
    thousand tokens hold the nucleus.
    """
    V = probs.shape[1]
    count = max((k for k in top_k if k < V), default=1)
    by_mass = [row for row, k in enumerate(top_k) if k == V and top_p[row] < 1]
    if not by_mass:
        return probs.topk(count, dim=-1).values
    best = probs.topk(min(V, max(count, _FIRST_CANDIDATES)), dim=-1).values
    mass = best[by_mass].sum(dim=-1, dtype=torch.float64)
    share = torch.tensor([top_p[row] for row in by_mass], dtype=torch.float64, device=mass.device)
    if bool((mass < share).any()):
        return probs.sort(dim=-1, descending=True).values
    return best


def _invert(weights: Tensor, draws: list[float]) -> Tensor:
    """Return for each row the first index whose cumulative weight exceeds draw x total: (R,).

    Two levels, blocks and then one block, for a running sum over a whole vocabulary would be the
    dearest step of all.
    """
    padding = -weights.shape[1] % _BLOCK
    padded = F.pad(weights, (0, padding)) if padding else weights
    blocks = padded.unflatten(1, (-1, _BLOCK))
    sums = blocks.sum(dim=-1, dtype=torch.float64)  # (R, V / block)
    target = _column(draws, weights, torch.float64) * sums.sum(dim=-1, keepdim=True)
    block, target = _first_above(sums, target)
    inside = blocks.gather(1, block[:, :, None].expand(-1, -1, _BLOCK))[:, 0]  # (R, block)
    index, _ = _first_above(inside.double(), target)
    return (block * _BLOCK + index)[:, 0]


def _first_above(weights: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first index whose cumulative weight exceeds target, and the target's rest there.

    Where rounding leaves no such index, it is the last one that has any weight.
    """
    cumulative = weights.cumsum(dim=-1)  # (R, C)
    index = torch.searchsorted(cumulative, target, right=True)  # (R, 1)
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
    index = torch.minimum(index, last)
    return index, target - (cumulative.gather(1, index) - weights.gather(1, index))


def _picked(values: Sequence[_Number] | None, which: list[int], off: _Number) -> list[_Number]:
    return [off] * len(which) if values is None else [values[row] for row in which]


def _index(values: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=like.device)


def _column(values: Sequence[float], like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=like.device)[:, None]  # (R, 1)
