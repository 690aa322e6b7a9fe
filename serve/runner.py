"""One forward pass: slices of sequences in, sampled tokens and log-probabilities out.

The tokens of all slices lie packed in one row of the model; attention goes through the pages.
Not here: which slices (scheduler.py), what becomes of a sampled token (engine.py).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate, islice

import numpy as np
import torch
from torch import Tensor

from llmlab.kernels.packed_linear import PackedLinear, can_pack, pack_linears
from llmlab.kernels.paged_attention import paged_attention, write_kv
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
        hidden = self._forward(slices).split([part.num_tokens for part in slices])  # (T, E) each
        results = self._next_tokens(slices, hidden)
        for at, (part, states) in enumerate(zip(slices, hidden, strict=True)):
            if part.seq.params.prompt_logprobs is not None:
                scored = self._prompt_logprobs(part, states)
                results[at] = replace(results[at], prompt_logprobs=scored)
        return results

    @torch.inference_mode()
    def copy_pages(self, pairs: list[tuple[int, int]]) -> None:
        """Copy whole pages of every layer, each pair from its first to its second."""
        sources, targets = torch.tensor(pairs, device=self._device).T  # (C,) each
        for cache in self._cache:
            pages = cache.unflatten(0, (-1, self._page_len))  # (num_pages, P, 2, G, D)
            pages[targets] = pages[sources]

    def _forward(self, slices: list[Slice]) -> Tensor:
        ids = [i for part in slices for i in part.seq.token_ids[part.start : part.end]]
        positions = [p for part in slices for p in range(part.start, part.end)]
        return self._model.hidden(
            torch.tensor([ids], device=self._device),  # (1, N)
            torch.tensor([positions], device=self._device),  # (1, N)
            self._attend(slices),
        )[0]

    def _attend(self, slices: list[Slice]) -> Attend:
        """Store the new keys and values in the sequences' pages, and attend to these."""
        P = self._page_len
        tables = [part.seq.pages[: -(-part.end // P)] for part in slices]
        most = max(len(table) for table in tables)
        slots = [
            table[position // P] * P + position % P
            for part, table in zip(slices, tables, strict=True)
            for position in range(part.start, part.end)
        ]
        bounds = [0, *accumulate(part.num_tokens for part in slices)]
        padded = [table + [0] * (most - len(table)) for table in tables]
        page_table = self._int32(padded)  # (S, most)
        context_lens, cu_new = self._int32([part.end for part in slices]), self._int32(bounds)
        at = torch.tensor(slots, device=self._device)  # (N,)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            cache = self._cache[layer]
            write_kv(cache, None, at, k[0].transpose(0, 1), v[0].transpose(0, 1))
            packed = q[0].transpose(0, 1)  # (N, H, D)
            out = paged_attention(packed, cache, None, page_table, context_lens, cu_new, page_len=P)
            return out.transpose(0, 1)[None]

        return attend

    def _int32(self, numbers: list) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int32, device=self._device)

    def _next_tokens(self, slices: list[Slice], hidden: tuple[Tensor, ...]) -> list[Computed]:
        """Sample for every slice that ends where its sequence does."""
        which = [at for at, part in enumerate(slices) if part.wants_token]
        if not which:
            return [Computed()] * len(slices)
        logits = self._logits(torch.stack([hidden[at][-1] for at in which])).float()  # (B, V)
        seqs = [slices[at].seq for at in which]
        # A vocabulary padded for speed has ids that no text belongs to; they are never chosen.
        ids = sample(logits[:, : self._tokenizer.vocab_size], _settings(seqs)).tolist()
        results = [Computed()] * len(slices)
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
