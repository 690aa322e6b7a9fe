"""Validation: the loss on the held-out documents, also in bits per byte.

Bits per byte = nats summed over the tokens / UTF-8 bytes they stand for / ln 2; unlike the loss, it
compares models with different tokenizers. The end-of-text token counts in the nats and stands for 0
bytes. Not here: tasks (llmlab/evals).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from llmlab.data import Shards, val_batches
from llmlab.data.batch import Batch
from llmlab.model.language_model import LanguageModel
from llmlab.tokenizers import Tokenizer


@dataclass(frozen=True)
class Validation:
    """One measurement."""

    val_loss: float
    """Nats a token."""

    bits_per_byte: float
    """Bits a UTF-8 byte."""

    tokens: int
    """Tokens scored."""

    num_bytes: int
    """UTF-8 bytes they stand for."""


class Validator:
    """Scores a model on the start of a shards folder's validation split.

    Args:
        shards: the folder; its validation split is not empty.
        tokenizer: the one the shards were packed with.
        batch_size: windows scored at once, B.
        context_len: tokens in a window, T; each window is scored without what came before it.
    """

    def __init__(
        self, shards: Shards, tokenizer: Tokenizer, *, batch_size: int, context_len: int
    ) -> None:
        self._shards, self._batch_size, self._context_len = shards, batch_size, context_len
        special = set(tokenizer.special_tokens.values())
        self._byte_lens = torch.tensor(
            [
                0 if i in special else len(tokenizer.token_bytes(i))
                for i in range(tokenizer.vocab_size)
            ]
        )  # (V,)

    def measure(self, model: LanguageModel, max_tokens: int) -> Validation:
        """Score the first `max_tokens` tokens, or all when there are fewer.

        Call it without gradients; autocast applies.
        """
        device = next(model.parameters()).device
        nats, tokens, num_bytes = 0.0, 0, 0
        for batch in self._batches(max_tokens):
            total, _ = model.loss_sum(*batch.to(device).arguments)
            scored = batch.labels[batch.labels >= 0]
            nats += float(total)
            tokens += len(scored)
            num_bytes += int(self._byte_lens[scored].sum())
        return Validation(nats / tokens, nats / num_bytes / math.log(2), tokens, num_bytes)

    def _batches(self, max_tokens: int) -> Iterator[Batch]:
        left = max_tokens
        batches = val_batches(
            self._shards, batch_size=self._batch_size, context_len=self._context_len
        )
        for batch in batches:
            flat = batch.labels.view(-1)
            flat[left:] = -100  # rows follow one another, so this cuts off the end of the text
            yield batch
            left -= flat.numel()
            if left <= 0:
                return
