"""One forward pass: slices of sequences in, next tokens and log-probabilities out.

Not here: which slices (scheduler.py), how tokens are chosen (next_tokens.py), what becomes of them
(engine.py).
"""

from collections import abc
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from llmlab.kernels.op import serving
from llmlab.kernels.packed_linear import Scheme
from llmlab.model import LanguageModel
from llmlab.model.fused import fuse_
from llmlab.model.sharding import sum_shares_
from llmlab.serve.adapters import AdapterStore
from llmlab.serve.deltas import TokenLogprob
from llmlab.serve.next_tokens import Computed, NextTokens
from llmlab.serve.paged_cache import PagedCache, StepInputs
from llmlab.serve.sequence import Slice
from llmlab.serve.tapes import Tapes
from llmlab.serve.tensor_parallel import Ranks
from llmlab.tokenizers import Tokenizer


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
        ranks: the processes that hold the other shares of the model, if it is one.
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
        ranks: Ranks | None = None,
        adapters: AdapterStore | None = None,
    ) -> None:
        weight = model.head_weight()
        device, dtype = weight.device, weight.dtype
        self._chooser = NextTokens(tokenizer)
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
        self._ranks = ranks
        # What goes between processes is no part of a tape.
        self._tapes = Tapes(self._states, self._cache, self._max_len) if ranks is None else None
        if ranks is not None:
            sum_shares_(model, ranks.sum_)
            self._logits = partial(
                ranks.logits, head=self._logits, vocab_size=model.config.vocab_size
            )

    def close(self) -> None:
        """End the other processes of the model, if there are any. May be called twice."""
        if self._ranks is not None:
            self._ranks.close()

    @torch.inference_mode()
    def run(self, slices: list[Slice]) -> list[Computed]:
        """Compute `slices`; results come in their order."""
        with serving(), nullcontext() if self._ranks is None else self._ranks.whole_or_over():
            has_adapter = any(part.seq.adapter is not None for part in slices)
            adapters = self._adapters if has_adapter else None
            states = None if self._tapes is None else self._tapes.run(slices, adapters)  # (N, E)
            if states is None:
                states = self._states(StepInputs.of(slices, self._cache, adapters))
            ends = [*accumulate(part.num_tokens for part in slices)]
            rows = [
                row
                for end, part in zip(ends, slices, strict=True)
                if part.wants_token
                for row in range(end - len(part.draft) - 1, end)
            ]
            results = self._next_tokens(slices, states[rows] if len(rows) < len(states) else states)
            for at, part in enumerate(slices):
                params, own = part.seq.params, slice(ends[at] - part.num_tokens, ends[at])
                if params.prompt_logprobs is not None:
                    scored = self._prompt(part, states[own])
                    results[at] = replace(results[at], prompt_logprobs=scored)
                if params.pooling is not None:
                    results[at] = replace(results[at], pooled=_pooled(part, states[own]))
            return results

    @torch.inference_mode()
    def copy_pages(self, pairs: abc.Sequence[tuple[int, int]]) -> None:
        """Copy whole pages of every layer, each pair from its first to its second."""
        if self._ranks is not None:
            self._ranks.copy_pages(pairs)
        self._cache.copy_pages(pairs)

    def _states(self, inputs: StepInputs) -> Tensor:
        if self._ranks is not None:
            self._ranks.step(inputs)
        if self._adapters is not None:
            self._adapters.slots.rows = inputs.lora
        attend = self._cache.attend(inputs)
        return self._model.hidden(inputs.token_ids, inputs.positions, attend)[0]  # (N, E)

    def _next_tokens(self, slices: list[Slice], states: Tensor) -> list[Computed]:
        """Choose for every slice that ends where its sequence does; states are theirs, (B, E)."""
        results = [Computed()] * len(slices)
        which = [at for at, part in enumerate(slices) if part.wants_token]
        if which:
            logits = self._logits(states).float()  # (B, V)
            found = self._chooser.choose([slices[at] for at in which], logits)
            for at, computed in zip(which, found, strict=True):
                results[at] = computed
        return results

    def _prompt(self, part: Slice, states: Tensor) -> tuple[TokenLogprob, ...]:
        """Score the prompt tokens that `part` predicts and nobody has scored; states (T, E)."""
        seq = part.seq
        first, last = max(part.start + 1, seq.num_scored), min(part.end, seq.prompt_len - 1)
        if first > last:
            return ()
        logits = self._logits(states[first - 1 - part.start : last - part.start])
        num_top = seq.params.prompt_logprobs or 0
        return self._chooser.score(seq.token_ids[first : last + 1], logits, num_top)


def _pooled(part: Slice, states: Tensor) -> Tensor:
    """Return what states (T, E) of a slice add to an embedding: (E,), float32."""
    if part.seq.params.pooling == "last":
        return states[-1].float()
    return states[max(part.seq.num_pooled - part.start, 0) :].sum(0, dtype=torch.float32)
