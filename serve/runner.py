"""One forward pass: slices of sequences in, sampled tokens and log-probabilities out.

The tokens of all slices lie packed in one row of the model; attention goes through the pages.
Not here: which slices (scheduler.py), what becomes of a sampled token (engine.py).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from llmlab.kernels.packed_linear import PackedLinear, can_pack, pack_linears
from llmlab.kernels.paged_attention import (
    AttentionPlan,
    paged_attention,
    plan_attention,
    write_pages,
)
from llmlab.model import Attend, LanguageModel
from llmlab.model.sampling import SamplingRows, sample, token_logprobs
from llmlab.serve.deltas import TokenLogprob
from llmlab.serve.sequence import Sequence, Slice
from llmlab.tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class Computed:
    """What a step found out about one slice."""

    token_id: int | None = None
    """The next token; None when the slice ends before the last known token."""
    logprob: TokenLogprob | None = None
    """Its log-probability, when the request wants it."""
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """Of the prompt tokens that follow the slice's tokens, when the request wants them."""


class Runner:
    """The model and its cache: `(num_pages * P, 2, G, D)` a layer, in the model's dtype.

    Args:
        model: in evaluation mode, on its device; from now on the runner's, for its linear layers
            are packed where that makes them faster.
        tokenizer: bounds what is sampled and gives tokens their bytes.
        num_pages: pages of the cache.
        page_len: P, tokens per page.
    """

    def __init__(
        self, model: LanguageModel, tokenizer: Tokenizer, *, num_pages: int, page_len: int
    ) -> None:
        weight = model.head_weight()
        G, D = model.config.num_key_value_heads, model.config.head_dim
        self._logits = model.logits
        if can_pack(weight):
            self._logits = PackedLinear(weight)
            pack_linears(model, {id(weight): self._logits})
        self._model = model
        self._tokenizer = tokenizer
        self._page_len = page_len
        self._device, self._dtype = weight.device, weight.dtype
        shape = (num_pages * page_len, 2, G, D)
        self._cache = [
            _zeros(shape, self._dtype, self._device) for _ in range(model.config.num_hidden_layers)
        ]

    @torch.inference_mode()
    def run(self, slices: list[Slice]) -> list[Computed]:
        """Compute `slices`; results come in their order."""
        # Decodes lie together, by length, so that few attention calls with little padding do.
        order = sorted(range(len(slices)), key=lambda at: _packing_key(slices[at]))
        packed = [slices[at] for at in order]
        hidden = self._forward(packed).split([part.num_tokens for part in packed])  # (T, E) each
        results = dict(zip(order, self._next_tokens(packed, hidden), strict=True))
        for at, part, states in zip(order, packed, hidden, strict=True):
            if part.seq.params.prompt_logprobs is not None:
                scored = self._prompt_logprobs(part, states)
                results[at] = replace(results[at], prompt_logprobs=scored)
        return [results[at] for at in range(len(slices))]

    def _forward(self, packed: list[Slice]) -> Tensor:
        ids = [i for part in packed for i in part.seq.token_ids[part.start : part.end]]
        positions = [p for part in packed for p in range(part.start, part.end)]
        plan = plan_attention(
            [part.num_tokens for part in packed],
            [part.end for part in packed],
            [part.seq.pages for part in packed],
            page_len=self._page_len,
            dtype=self._dtype,
            device=self._device,
        )
        return self._model.hidden(
            torch.tensor([ids], device=self._device),  # (1, N)
            torch.tensor([positions], device=self._device),  # (1, N)
            self._attend(plan),
        )[0]

    def _attend(self, plan: AttentionPlan) -> Attend:
        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            write_pages(self._cache[layer], plan, k, v)
            return paged_attention(q, k, v, self._cache[layer], plan)

        return attend

    def _next_tokens(self, packed: list[Slice], hidden: tuple[Tensor, ...]) -> list[Computed]:
        """Sample for every slice that ends where its sequence does."""
        which = [at for at, part in enumerate(packed) if part.wants_token]
        if not which:
            return [Computed()] * len(packed)
        logits = self._logits(torch.stack([hidden[at][-1] for at in which])).float()  # (B, V)
        seqs = [packed[at].seq for at in which]
        # A vocabulary padded for speed has ids that no text belongs to; they are never chosen.
        ids = sample(logits[:, : self._tokenizer.vocab_size], _settings(seqs)).tolist()
        results = [Computed()] * len(packed)
        for row, (at, seq, token_id) in enumerate(zip(which, seqs, ids, strict=True)):
            num_top = seq.params.logprobs
            logprob = None
            if num_top is not None:
                logprob = self._score([token_id], logits[row : row + 1], num_top)[0]
            results[at] = Computed(token_id, logprob)
        return results

    def _prompt_logprobs(self, part: Slice, states: Tensor) -> tuple[TokenLogprob, ...]:
        """Score the prompt tokens that `part` predicts and nobody has scored; states (T, E)."""
        seq = part.seq
        first, last = max(part.start + 1, seq.num_scored), min(part.end, seq.prompt_len - 1)
        if first > last:
            return ()
        logits = self._logits(states[first - 1 - part.start : last - part.start])
        return self._score(seq.token_ids[first : last + 1], logits, seq.params.prompt_logprobs or 0)

    def _score(
        self, token_ids: list[int], logits: Tensor, num_top: int
    ) -> tuple[TokenLogprob, ...]:
        """Describe one token a row of logits (B, V), each with the `num_top` most likely ones.

        The ids of a padded vocabulary have their share of the probability, as the model gives it,
        but are no alternatives: as many more are asked for, and left out.
        """
        num_nameless = logits.shape[1] - self._tokenizer.vocab_size
        num_asked = num_top + num_nameless if num_top else 0
        found = token_logprobs(logits, torch.tensor(token_ids, device=self._device), num_asked)
        tops = zip(found.top_ids.tolist(), found.top_logprobs.tolist(), strict=True)
        return tuple(
            self._entry(token_id, value, self._named(zip(*top, strict=True), num_top))
            for token_id, value, top in zip(token_ids, found.sampled.tolist(), tops, strict=True)
        )

    def _named(self, top: Iterable[tuple[int, float]], count: int) -> tuple[TokenLogprob, ...]:
        named = (pair for pair in top if pair[0] < self._tokenizer.vocab_size)
        return tuple(self._entry(*pair) for pair in islice(named, count))

    def _entry(
        self, token_id: int, value: float, top: tuple[TokenLogprob, ...] = ()
    ) -> TokenLogprob:
        return TokenLogprob(token_id, self._tokenizer.token_bytes(token_id), value, top)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros that take memory on a CPU only where they are written to, unlike torch's."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes, line = math.prod(shape) * dtype.itemsize, 64  # a cache line of the processor
    memory = np.zeros(num_bytes + line, dtype=np.uint8)
    start = -memory.ctypes.data % line
    return torch.from_numpy(memory[start : start + num_bytes]).view(dtype).view(shape)


def _packing_key(part: Slice) -> tuple[bool, int]:
    return part.num_tokens > 1, part.end


def _settings(seqs: list[Sequence]) -> SamplingRows:
    """Return what the sampler needs to know of each sequence."""
    params = [seq.params for seq in seqs]
    penalised = any(
        (p.repetition_penalty, p.presence_penalty, p.frequency_penalty) != (1, 0, 0) for p in params
    )
    return SamplingRows(
        temperature=[p.temperature for p in params],
        seed=[seq.seed for seq in seqs],
        num_sampled=[seq.num_generated for seq in seqs],
        top_k=[p.top_k for p in params],
        top_p=[p.top_p for p in params],
        min_p=[p.min_p for p in params],
        repetition_penalty=[p.repetition_penalty for p in params] if penalised else None,
        presence_penalty=[p.presence_penalty for p in params] if penalised else None,
        frequency_penalty=[p.frequency_penalty for p in params] if penalised else None,
        prompt_ids=[seq.token_ids[: seq.prompt_len] for seq in seqs] if penalised else None,
        output_ids=[seq.token_ids[seq.prompt_len :] for seq in seqs] if penalised else None,
        logit_bias=[_bias(seq) for seq in seqs],
    )


def _bias(seq: Sequence) -> Mapping[int, float]:
    if seq.num_generated >= seq.params.min_tokens:
        return seq.params.logit_bias
    return {**seq.params.logit_bias, **dict.fromkeys(seq.stop_ids, -math.inf)}
