"""What one model can never do, told from its vocabulary and its context alone; plain Python.

Not here: the ranges of the values themselves (`SamplingParams` checks those when it is built).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from llmlab.errors import RequestError
from llmlab.serve.params import SamplingParams


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of every request to one model."""

    vocab_size: int
    max_model_len: int
    """Most tokens of prompt and answer together."""

    def check(self, prompt_ids: Sequence[int], *params: SamplingParams) -> None:
        """Refuse what the model can never do; any thread may call it.

        Args:
            prompt_ids: a prompt.
            params: how it is to be sampled, once or several times.

        Raises:
            RequestError: the prompt is empty, has ids outside the vocabulary, or leaves no room
                for `max_tokens`; `.param` names the field at fault.
        """
        room = self.max_model_len - len(prompt_ids)
        if not prompt_ids:
            raise RequestError("the prompt has no tokens; pass at least one", param="prompt")
        if room < (0 if all(own.max_tokens == 0 for own in params) else 1):
            raise RequestError(
                f"the prompt has {len(prompt_ids)} tokens and the context holds "
                f"{self.max_model_len}, answer included; shorten it",
                param="prompt",
            )
        self._check_ids("prompt", prompt_ids)
        for own in params:
            if own.max_tokens is not None and own.max_tokens > room:
                raise RequestError(
                    f"max_tokens={own.max_tokens} does not fit: the context holds "
                    f"{self.max_model_len} tokens and the prompt has {len(prompt_ids)}; "
                    f"use at most {room}",
                    param="max_tokens",
                )
            self._check_ids("logit_bias", own.logit_bias)
            self._check_ids("stop_token_ids", own.stop_token_ids)

    def _check_ids(self, name: str, ids: Collection[int]) -> None:
        V = self.vocab_size
        if ids and not 0 <= min(ids) <= max(ids) < V:
            raise RequestError(
                f"{name} has token ids {min(ids)} to {max(ids)}; the vocabulary is 0 to {V - 1}",
                param=name,
            )
