"""One forward pass: slices of sequences in, sampled tokens and log-probabilities out.

The tokens of all slices lie packed in one row of the model; attention goes through the pages.
Not here: which slices (scheduler.py), what becomes of a sampled token (engine.py).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate, islice

import torch
from torch import Tensor

from llmlab.kernels.op import serving
from llmlab.kernels.packed_linear import Scheme
from llmlab.model import LanguageModel
from llmlab.model.fused import fuse_
from llmlab.model.sampling import SamplingRows, sample, token_logprobs
from llmlab.serve.adapters import AdapterStore
from llmlab.serve.deltas import TokenLogprob
from llmlab.serve.paged_cache import PagedCache, StepInputs
from llmlab.serve.sequence import Sequence, Slice
from llmlab.serve.tapes import Tapes
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
        model: in evaluation mode, on its device; from now on the runner's, which makes it ready to
            serve in place (llmlab/model/fused.py).
        tokenizer: bounds what is sampled and gives tokens their bytes.
        num_pages: pages of the cache.
        page_len: P, tokens per page.
        max_len: most tokens of a sequence; the model's own limit when None.
        scheme: how weights are kept on a CPU.
        has_int8_kv: whether keys and values are kept as int8.
        adapters: those that sequences may have; None when they may have none.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        *,
        num_pages: int,
        page_len: int,
        max_len: int | None = None,
        scheme: Scheme = "stored",
        has_int8_kv: bool = False,
        adapters: AdapterStore | None = None,
    ) -> None:
        weight = model.head_weight()
        device, dtype = weight.device, weight.dtype
        self._tokenizer = tokenizer
        self._max_len = max_len or model.config.max_position_embeddings
        self._cache = PagedCache(
            model.config,
            num_pages=num_pages,
            page_len=page_len,
            dtype=torch.int8 if has_int8_kv else dtype,
            device=device,
        )
        self._model = model
        self._logits = fuse_(
            model, scheme=scheme, max_len=self._max_len, gate_inside=adapters is None
        )
        self._adapters = adapters
        if adapters is not None:
            adapters.slots.adapt_(model)
        self._tapes = Tapes(self._states, self._cache, self._max_len)

    @torch.inference_mode()
    def run(self, slices: list[Slice]) -> list[Computed]:
        """Compute `slices`; results come in their order."""
        with serving():
            has_adapter = any(part.seq.adapter is not None for part in slices)
            adapters = self._adapters if has_adapter else None
            states = self._tapes.run(slices, adapters)  # (N, E)
            if states is None:
                states = self._states(StepInputs.of(slices, self._cache, adapters))
            ends = [*accumulate(part.num_tokens for part in slices)]
            last = [end - 1 for end, part in zip(ends, slices, strict=True) if part.wants_token]
            results = self._next_tokens(slices, states[last] if len(last) < len(states) else states)
            for at, part in enumerate(slices):
                if part.seq.params.prompt_logprobs is not None:
                    own = states[ends[at] - part.num_tokens : ends[at]]
                    results[at] = replace(results[at], prompt_logprobs=self._prompt(part, own))
            return results

    def _states(self, inputs: StepInputs) -> Tensor:
        if self._adapters is not None:
            self._adapters.slots.rows = inputs.lora
        attend = self._cache.attend(inputs)
        return self._model.hidden(inputs.token_ids, inputs.positions, attend)[0]  # (N, E)

    def _next_tokens(self, slices: list[Slice], states: Tensor) -> list[Computed]:
        """Sample for every slice that ends where its sequence does; states are theirs, (B, E)."""
        results = [Computed()] * len(slices)
        which = [at for at, part in enumerate(slices) if part.wants_token]
        if not which:
            return results
        logits = self._logits(states).float()  # (B, V)
        seqs = [slices[at].seq for at in which]
        # A vocabulary padded for speed has ids that no text belongs to; they are never chosen.
        ids = sample(logits[:, : self._tokenizer.vocab_size], _settings(seqs)).tolist()
        for row, (at, seq, token_id) in enumerate(zip(which, seqs, ids, strict=True)):
            num_top = seq.params.logprobs
            logprob = None
            if num_top is not None:
                logprob = self._score([token_id], logits[row : row + 1], num_top)[0]
            results[at] = Computed(token_id, logprob)
        return results

    def _prompt(self, part: Slice, states: Tensor) -> tuple[TokenLogprob, ...]:
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
        found = token_logprobs(logits, torch.tensor(token_ids, device=logits.device), num_asked)
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
