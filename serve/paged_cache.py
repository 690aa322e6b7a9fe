"""The key/value cache in pages, and the tensors that tell a step where its tokens are.

The tokens of all slices of a step lie packed in one row of the model; attention goes through the
pages. Not here: who owns which page (pages.py), the model (runner.py).
"""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from llmlab.kernels.paged_attention import paged_attention, write_kv
from llmlab.model import Attend, ModelConfig
from llmlab.serve.adapters import AdapterStore
from llmlab.serve.lora_slots import LoraRows
from llmlab.serve.memory import lazy_zeros
from llmlab.serve.sequence import Slice


class PagedCache:
    """Keys and values of all layers: `(num_pages * P, 2, G, D)` a layer.

    With int8 each key and value of a head has a float32 scale, `(num_pages * P, 2, G)` a layer.

    Args:
        config: of the model.
        num_pages: pages in all.
        page_len: P, tokens a page.
        dtype: of keys and values: the model's, or int8.
        device: where they lie.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_pages: int,
        page_len: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.page_len = page_len
        self.device = device
        shape = (num_pages * page_len, 2, config.num_key_value_heads, config.head_dim)
        self._layers = [lazy_zeros(shape, dtype, device) for _ in range(config.num_hidden_layers)]
        self._scales: list[Tensor | None] = [None] * len(self._layers)
        if dtype == torch.int8:
            self._scales = [lazy_zeros(shape[:3], torch.float32, device) for _ in self._layers]

    def attend(self, inputs: "StepInputs") -> Attend:
        """Return what stores a step's keys and values in their pages and attends to these."""

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            cache, scale = self._layers[layer], self._scales[layer]
            write_kv(cache, scale, inputs.slots, k[0].transpose(0, 1), v[0].transpose(0, 1))
            out = paged_attention(
                q[0].transpose(0, 1),  # (N, H, D)
                cache,
                scale,
                inputs.page_table,
                inputs.context_lens,
                inputs.cu_new,
                page_len=self.page_len,
            )
            return out.transpose(0, 1)[None]

        return attend

    def copy_pages(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole pages, `(from, to)` each, in every layer."""
        sources, targets = torch.tensor(pairs, device=self.device).T  # (C,) each
        for store in (*self._layers, *self._scales):
            if store is not None:
                pages = store.unflatten(0, (-1, self.page_len))  # (num_pages, P, 2, G, ...)
                pages[targets] = pages[sources]


class StepInputs:
    """What a step computes and where it lies; `fill` puts another step of the same size there.

    Args:
        num_tokens: N, new tokens of all sequences.
        num_seqs: S, sequences.
        most_pages: widest row of the page table.
        cache: where keys and values lie.
        adapters: those that sequences of the step have; None when none has one.
    """

    def __init__(
        self,
        num_tokens: int,
        num_seqs: int,
        most_pages: int,
        cache: PagedCache,
        adapters: AdapterStore | None = None,
    ) -> None:
        self._adapters = adapters
        self.lora = None  # which tokens have which adapter
        if adapters is not None:
            self.lora = LoraRows(num_tokens, adapters.num_slots, cache.device)
        self._page_len, self._device = cache.page_len, cache.device
        self._long = np.zeros((3, num_tokens), dtype=np.int64)
        self._short = np.zeros(2 * num_seqs + 1 + num_seqs * most_pages, dtype=np.int32)
        long, short = (torch.from_numpy(numbers) for numbers in (self._long, self._short))
        self._on_host = (long, short)
        self.tensors = tuple(numbers.to(self._device) for numbers in self._on_host)
        """All numbers, on the device: what another process needs to compute the same step."""
        self.sizes = (num_tokens, num_seqs, most_pages)
        long, short = self.tensors
        self.token_ids, self.positions = long[0:1], long[1:2]  # (1, N)
        self.slots = long[2]  # (N,), place of each token in the cache
        self.context_lens = short[:num_seqs]  # (S,)
        self.cu_new = short[num_seqs : 2 * num_seqs + 1]  # (S + 1,)
        self.page_table = short[2 * num_seqs + 1 :].view(num_seqs, most_pages)
        self._table = self._short[2 * num_seqs + 1 :].reshape(num_seqs, most_pages)

    @classmethod
    def of(
        cls, slices: list[Slice], cache: PagedCache, adapters: AdapterStore | None = None
    ) -> "StepInputs":
        """Return the inputs of a step, of just its size."""
        most_pages = max(-(-part.reach // cache.page_len) for part in slices)
        num_tokens = sum(part.num_tokens for part in slices)
        inputs = cls(num_tokens, len(slices), most_pages, cache, adapters)
        inputs.fill(slices)
        return inputs

    def fill(self, slices: list[Slice]) -> None:
        """Put the numbers of a step of N tokens and S sequences into the tensors."""
        P, S = self._page_len, len(slices)
        ids, positions, slots = self._long
        at = 0
        for row, part in enumerate(slices):
            end = at + part.num_tokens
            pages = part.seq.pages[: -(-part.reach // P)]
            self._table[row, : len(pages)] = pages
            ids[at:end] = (*part.seq.token_ids[part.start : part.end], *part.draft)
            positions[at:end] = place = np.arange(part.start, part.reach)
            slots[at:end] = self._table[row, place // P] * P + place % P
            at = end
        self._short[:S] = [part.reach for part in slices]
        self._short[S : 2 * S + 1] = [0, *accumulate(part.num_tokens for part in slices)]
        if self._adapters is not None and self.lora is not None:
            slots = [self._adapters.slot_of(part.seq.adapter) for part in slices]
            self.lora.fill(np.repeat(slots, [part.num_tokens for part in slices]))
        if self._device.type != "cpu":
            for host, own in zip(self._on_host, self.tensors, strict=True):
                own.copy_(host)
