"""A small model that guesses what a large one says next.

It reads the same texts into a cache of its own, under the same page numbers, so that nothing more
has to be decided about its memory. It samples with the request's own settings and random numbers:
where the two models agree on the probabilities they draw the same token.
Not here: how many tokens to guess (speculation.py), the check (next_tokens.py).
Source: arXiv:2211.17192.
"""

import time
from collections import abc
from dataclasses import replace

import torch

from llmlab.errors import ConfigError, RequestError
from llmlab.model import load_config, load_model
from llmlab.serve.params import EngineConfig
from llmlab.serve.runner import Runner
from llmlab.serve.sequence import Sequence, Slice
from llmlab.tokenizers import Tokenizer


class DraftModel:
    """Guesses, a token of all sequences at a time.

    Args:
        config: names the folder; the engine's other settings hold for it too.
        tokenizer: of the large model.
        device: where it shall live.
        dtype: of its weights and cache.
        num_pages: of the large model's cache.
        max_len: most tokens of a sequence.

    Raises:
        ModelError: the folder is no model folder.
        ConfigError: another tokenizer, or a context too short.
    """

    def __init__(
        self,
        config: EngineConfig,
        tokenizer: Tokenizer,
        *,
        device: torch.device,
        dtype: str,
        num_pages: int,
        max_len: int,
    ) -> None:
        assert config.draft_model is not None
        longest = load_config(config.draft_model).max_position_embeddings
        if longest < max_len:
            raise ConfigError(
                f"draft_model={config.draft_model} reads {longest} tokens and the engine serves "
                f"{max_len}; pass max_model_len={longest} or another draft model"
            )
        model, own_tokenizer = load_model(config.draft_model, dtype=dtype, device=device)
        if own_tokenizer.fingerprint != tokenizer.fingerprint:
            raise ConfigError(
                f"draft_model={config.draft_model} has another tokenizer than {config.model}; "
                "a draft model must have the same token ids"
            )
        self._page_len = config.page_len
        self._most_tokens = config.max_batch_tokens
        self._runner = Runner(
            model,
            tokenizer,
            num_pages=num_pages,
            page_len=config.page_len,
            max_len=max_len,
            scheme=config.quantize,
            has_int8_kv=config.kv_dtype == "int8",
        )
        self._shadows: dict[int, Sequence] = {}
        self.token_s = 0.0
        """What one more token of all drafts takes, as of late; 0 before the first."""

    def guess(self, seqs: abc.Sequence[Sequence], counts: abc.Sequence[int]) -> list[list[int]]:
        """Return up to so many tokens that may follow each sequence.

        Fewer, or none, where much of a text has to be read first: that goes on at the next call.

        Args:
            seqs: they own the pages of all their tokens and of the drafts, and share none that is
                to be written.
            counts: most tokens of each.
        """
        self._forget({seq.number for seq in seqs})
        shadows = [self._shadow(seq) for seq in seqs]
        drafts: list[list[int]] = [[] for _ in seqs]
        for turn in range(max(counts, default=0)):
            start = time.perf_counter()
            parts, rows, room = [], [], self._most_tokens
            for row, (shadow, count) in enumerate(zip(shadows, counts, strict=True)):
                if turn < count and len(drafts[row]) == turn and room:
                    end = min(len(shadow.token_ids), shadow.num_computed + room)
                    parts.append(Slice(shadow, shadow.num_computed, end))
                    rows.append(row)
                    room -= end - shadow.num_computed
            if not parts:
                break
            for row, part, found in zip(rows, parts, self._runner.run(parts), strict=True):
                part.seq.num_computed = part.end
                part.seq.token_ids += found.token_ids
                drafts[row] += found.token_ids
                if not _goes_on(part.seq, found.token_ids):
                    counts = [*counts[:row], len(drafts[row]), *counts[row + 1 :]]
            if turn:  # the first turn also reads what is new
                seconds = time.perf_counter() - start
                self.token_s += 0.2 * (seconds - self.token_s) if self.token_s else seconds
        return drafts

    def _shadow(self, seq: Sequence) -> Sequence:
        """Return this model's own view of a sequence: its tokens, and how many it has read."""
        shadow = self._shadows.get(seq.number)
        if shadow is None:
            shadow = self._shadows[seq.number] = Sequence(
                number=seq.number,
                prompt_len=seq.prompt_len,
                token_ids=[],
                params=replace(seq.params, logprobs=None, prompt_logprobs=None),
                max_len=seq.max_len,
                seed=seq.seed,
                stop_ids=seq.stop_ids,
            )
        same_tokens = _num_alike(shadow.token_ids, seq.token_ids)
        same_pages = _num_alike(shadow.pages, seq.pages) * self._page_len
        # The last token is always read: what follows it is wanted.
        shadow.num_computed = min(
            shadow.num_computed, same_tokens, same_pages, len(seq.token_ids) - 1
        )
        shadow.token_ids = list(seq.token_ids)
        shadow.pages = list(seq.pages)
        shadow.grammar = None if seq.grammar is None else seq.grammar.fork()
        return shadow

    def _forget(self, numbers: set[int]) -> None:
        """Drop what belongs to sequences that do not decode any more."""
        for number in self._shadows.keys() - numbers:
            del self._shadows[number]


def _goes_on(shadow: Sequence, token_ids: abc.Sequence[int]) -> bool:
    """Follow the grammar; return whether there may be more."""
    if shadow.grammar is None:
        return True
    try:
        is_right = all(shadow.grammar.accept(token_id) for token_id in token_ids)
    except RequestError:  # the request itself will meet it, if it comes that far
        return False
    return is_right and not shadow.grammar.is_finished


def _num_alike(first: abc.Sequence[int], second: abc.Sequence[int]) -> int:
    """Return how many leading numbers are the same."""
    length = min(len(first), len(second))
    if first[:length] == second[:length]:
        return length
    return next(at for at in range(length) if first[at] != second[at])
