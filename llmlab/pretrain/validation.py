"""Validation: the loss on the held-out documents, also in bits per byte.

Bits per byte = nats summed over the tokens / UTF-8 bytes they stand for / ln 2; unlike the loss, it
compares models with different tokenizers. The end-of-text token counts in the nats and stands for 0
bytes. Of several sources each is measured, and their mean goes by their shares of the training.
Not here: tasks (llmlab/evals).
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from llmlab.data import Shards, val_batches
from llmlab.data.batch import Batch
from llmlab.model.language_model import LanguageModel
from llmlab.tokenizers import Tokenizer
from llmlab.training.distributed import rank, sum_over_ranks, world_size


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

    by_source: "Mapping[str, Validation]" = field(default_factory=dict)
    """The same for each of several sources."""

    @property
    def row(self) -> dict[str, float]:
        """The numbers for a row of metrics, those of each source as `val_loss/NAME`."""
        row = {"val_loss": self.val_loss, "bits_per_byte": self.bits_per_byte}
        for name, found in self.by_source.items():
            row |= {f"{key}/{name}": number for key, number in found.row.items()}
        return row


class Validator:
    """Scores a model on the start of each source's validation split.

    Args:
        sources: a name and a folder each; one without a validation split is left out.
        shares: weight of each source in the mean.
        tokenizer: the one the shards were packed with.
        batch_size: windows scored at once, B.
        context_len: tokens in a window, T; each window is scored without what came before it.
        document_ids: whether attention is kept inside documents, as in the training.
    """

    def __init__(
        self,
        sources: Sequence[tuple[str, Shards]],
        shares: Sequence[float],
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        context_len: int,
        document_ids: bool = False,
    ) -> None:
        pairs = zip(sources, shares, strict=True)
        self._sources = [(*source, share) for source, share in pairs if len(source[1].split("val"))]
        self._batch_size, self._context_len = batch_size, context_len
        self._document_ids = document_ids
        special = set(tokenizer.special_tokens.values())
        self._byte_lens = torch.tensor(
            [
                0 if i in special else len(tokenizer.token_bytes(i))
                for i in range(tokenizer.vocab_size)
            ]
        )  # (V,)

    def __bool__(self) -> bool:
        """Whether anything is held out."""
        return bool(self._sources)

    def measure(self, model: LanguageModel, max_tokens: int) -> Validation:
        """Score the first `max_tokens` tokens, as many of each source, or all it has.

        Call it without gradients; autocast applies. Under torchrun every rank calls it, scores its
        share of the batches, and gets the same numbers.
        """
        quota = -(-max_tokens // len(self._sources))
        found = {name: self._measure_one(model, shards, quota) for name, shards, _ in self._sources}
        if len(found) == 1:
            return next(iter(found.values()))
        shares = [share for _, _, share in self._sources]
        weighted = list(zip(shares, found.values(), strict=True))
        nats = sum(share * one.val_loss for share, one in weighted)
        num_bytes = sum(share * one.num_bytes / one.tokens for share, one in weighted)
        return Validation(
            val_loss=nats / sum(shares),
            bits_per_byte=nats / num_bytes / math.log(2),
            tokens=sum(one.tokens for one in found.values()),
            num_bytes=sum(one.num_bytes for one in found.values()),
            by_source=found,
        )

    def _measure_one(self, model: LanguageModel, shards: Shards, max_tokens: int) -> Validation:
        device = next(model.parameters()).device
        nats, tokens, num_bytes = 0.0, 0, 0
        batches = self._batches(shards, max_tokens)
        for batch in itertools.islice(batches, rank(), None, world_size()):
            total, _ = model.loss_sum(*batch.to(device).arguments)
            scored = batch.labels[batch.labels >= 0]
            nats += float(total)
            tokens += len(scored)
            num_bytes += int(self._byte_lens[scored].sum())
        nats, tokens, num_bytes = sum_over_ranks(nats, tokens, num_bytes)
        return Validation(
            nats / tokens, nats / num_bytes / math.log(2), int(tokens), int(num_bytes)
        )

    def _batches(self, shards: Shards, max_tokens: int) -> Iterator[Batch]:
        left = max_tokens
        batches = val_batches(
            shards,
            batch_size=self._batch_size,
            context_len=self._context_len,
            document_ids=self._document_ids,
        )
        for batch in batches:
            flat = batch.labels.view(-1)
            flat[left:] = -100  # rows follow one another, so this cuts off the end of the text
            yield batch
            left -= flat.numel()
            if left <= 0:
                return
