"""One request under way: its sequence, its text, and the deltas that tell of both.

Not here: what a step computes (runner.py), when a sequence runs (scheduler.py).
"""

from collections import abc

from torch import Tensor
from torch.nn import functional

from llmlab.errors import RequestError
from llmlab.serve.adapters import AdapterHold
from llmlab.serve.deltas import Delta, FinishReason, TokenLogprob
from llmlab.serve.detokenize import TextStream
from llmlab.serve.next_tokens import Computed
from llmlab.serve.sequence import Sequence, Slice
from llmlab.serve.speculation import Chance, NgramIndex
from llmlab.tokenizers import Tokenizer


class Request:
    """What the engine keeps of a request.

    Args:
        seq: its tokens.
        tokenizer: gives tokens their text.
        hold: on its adapter, which it shares with those that came with it; None without one.
    """

    def __init__(
        self, seq: Sequence, tokenizer: Tokenizer, hold: AdapterHold | None = None
    ) -> None:
        self.seq = seq
        self.hold = hold
        self.guesses = NgramIndex()
        """Of what may come next."""
        self.chance = Chance()
        """That a guess is right."""
        self._text = TextStream(tokenizer, seq.params.stop)
        self._prompt_logprobs: list[TokenLogprob | None] | None = None
        """Until the first delta carries them away; None when they are not wanted."""
        if seq.params.prompt_logprobs is not None:
            self._prompt_logprobs = [None]
        self._pooled: Tensor | None = None
        """(E,), float32: the sum of the states so far, or the last one."""

    def advance(self, part: Slice, result: Computed) -> Delta | None:
        """Add what a step found; return None when there is nothing to tell yet."""
        seq = self.seq
        if self._prompt_logprobs is not None:
            self._prompt_logprobs += result.prompt_logprobs
            seq.num_scored += len(result.prompt_logprobs)
        if result.pooled is not None:
            self._pool(part, result.pooled)
        if not part.is_last:
            return None
        is_first = not seq.num_generated
        try:
            if result.failure is not None:
                raise result.failure
            text, finish_reason = self._append(result.token_ids)
        except RequestError as error:
            return Delta(finish_reason="abort", error=error)
        token_ids = tuple(seq.token_ids[part.end :])
        seq.draft = ()
        self.chance.observe(len(part.draft), max(len(token_ids) - 1, 0))
        prompt_logprobs, self._prompt_logprobs = self._prompt_logprobs, None
        return Delta(
            text=text,
            token_ids=token_ids,
            logprobs=result.logprobs[: len(token_ids)],
            finish_reason=finish_reason,
            prompt_logprobs=None if prompt_logprobs is None else tuple(prompt_logprobs),
            num_cached_tokens=(seq.num_cached or 0) if is_first else 0,
            embedding=None if self._pooled is None else tuple(_of_length_1(self._pooled)),
        )

    def _pool(self, part: Slice, states: Tensor) -> None:
        if self._pooled is not None and self.seq.params.pooling == "mean":
            states = self._pooled + states
        self._pooled = states
        self.seq.num_pooled = max(self.seq.num_pooled, part.end)

    def _append(self, token_ids: abc.Sequence[int]) -> tuple[str, FinishReason | None]:
        """Add tokens until the request ends; return their text and why it ends.

        Raises:
            RequestError: its grammar cannot be followed any further.
        """
        if not token_ids:
            return "", "length"  # a request that wants no token
        text = ""
        for token_id in token_ids:
            self.seq.token_ids.append(token_id)
            piece, finish_reason = self._read(token_id)
            text += piece
            if finish_reason is not None:
                return text, finish_reason
        return text, None

    def _read(self, token_id: int) -> tuple[str, FinishReason | None]:
        """Return the text that a token adds and whether the request ends with it."""
        seq, grammar = self.seq, self.seq.grammar
        if grammar is not None:
            grammar.accept(token_id)
        if token_id in seq.stop_ids:
            return self._text.finish()[0], "stop"
        may_stop = seq.num_generated > seq.params.min_tokens
        text, stopped = self._text.push(token_id, may_stop=may_stop)
        if stopped:
            return text, "stop"
        is_complete = grammar is not None and grammar.is_finished
        if len(seq.token_ids) < seq.max_len and not is_complete:
            return text, None
        rest, stopped = self._text.finish()
        return text + rest, "stop" if stopped or is_complete else "length"


def _of_length_1(x: Tensor) -> list[float]:
    return functional.normalize(x, dim=0).tolist()
