"""One request under way: its sequence, its text, and the deltas that tell of both.

Not here: what a step computes (runner.py), when a sequence runs (scheduler.py).
"""

from llmlab.serve.deltas import Delta, FinishReason, TokenLogprob
from llmlab.serve.detokenize import TextStream
from llmlab.serve.runner import Computed
from llmlab.serve.sequence import Sequence, Slice
from llmlab.tokenizers import Tokenizer


class Request:
    """What the engine keeps of a request.

    Args:
        seq: its tokens.
        tokenizer: gives tokens their text.
    """

    def __init__(self, seq: Sequence, tokenizer: Tokenizer) -> None:
        self.seq = seq
        self._text = TextStream(tokenizer, seq.params.stop)
        self._prompt_logprobs: list[TokenLogprob | None] | None = None
        """Until the first delta carries them away; None when they are not wanted."""
        if seq.params.prompt_logprobs is not None:
            self._prompt_logprobs = [None]

    def advance(self, part: Slice, result: Computed) -> Delta | None:
        """Add what a step found; return None when there is nothing to tell yet."""
        seq = self.seq
        if self._prompt_logprobs is not None:
            self._prompt_logprobs += result.prompt_logprobs
            seq.num_scored += len(result.prompt_logprobs)
        if not part.is_last:
            return None
        is_first = not seq.num_generated
        text, finish_reason = "", "length"  # what becomes of a request that wants no token
        if result.token_id is not None:
            seq.token_ids.append(result.token_id)
            text, finish_reason = self._read(result.token_id)
        prompt_logprobs, self._prompt_logprobs = self._prompt_logprobs, None
        return Delta(
            text=text,
            token_ids=() if result.token_id is None else (result.token_id,),
            logprobs=() if result.logprob is None else (result.logprob,),
            finish_reason=finish_reason,
            prompt_logprobs=None if prompt_logprobs is None else tuple(prompt_logprobs),
            num_cached_tokens=(seq.num_cached or 0) if is_first else 0,
        )

    def _read(self, token_id: int) -> tuple[str, FinishReason | None]:
        """Return the text that a token adds and whether the request ends with it."""
        seq = self.seq
        if token_id in seq.stop_ids:
            return self._text.finish()[0], "stop"
        may_stop = seq.num_generated > seq.params.min_tokens
        text, stopped = self._text.push(token_id, may_stop=may_stop)
        if stopped:
            return text, "stop"
        if len(seq.token_ids) < seq.max_len:
            return text, None
        rest, stopped = self._text.finish()
        return text + rest, "stop" if stopped else "length"
