"""The one sampler, for `generate` and for the server: logits to token ids, row by row.

Every row has its own settings, and its result does not depend on the other rows of the batch: the
randomness of a row is one uniform number, a hash of (seed, tokens sampled so far), turned into a
token by the inverse of the cumulative distribution (llmlab/kernels/sample.py).

Order, for rows with temperature > 0: logit bias, penalties, temperature, top-k, top-p, min-p.
Not here: when to stop, what the ids mean, grammar constraints. Sources: arXiv:1904.09751 (top-p),
arXiv:2407.01082 (min-p), arXiv:1909.05858 (repetition penalty).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from llmlab.errors import ModelError
from llmlab.kernels.sample import sample_tokens

_LARGEST_DRAW = 1 - 2**-24
"""Below 1 in float32 too."""


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
    draws = [uniform(*pair) for pair in zip(rows.seed, rows.num_sampled, strict=True)]
    B = len(rows)
    return sample_tokens(
        scores,
        _column(rows.temperature, scores),
        _column([min(k, scores.shape[1]) for k in rows.top_k or [0] * B], scores).int(),
        _column(rows.top_p or [1.0] * B, scores),
        _column(rows.min_p or [0.0] * B, scores),
        _column([min(draw, _LARGEST_DRAW) for draw in draws], scores),
    )


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


def _index(values: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=like.device)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)  # (B,)
