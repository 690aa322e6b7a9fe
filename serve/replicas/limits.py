"""What a model can never do, told without the model: only its vocabulary and context are known.

Not here: the ranges of the values themselves (`SamplingParams` checks those when it is built).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llmlab.errors import RequestError
from llmlab.serve.params import SamplingParams


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of every request to one model."""

    vocab_size: int
    max_model_len: int
    """Most tokens of prompt and answer together."""

    def check(self, prompt_ids: Sequence[int], params: SamplingParams) -> None:
        """Refuse what `Engine.check` refuses, in the same words.

        Raises:
            RequestError: the prompt is empty, has ids outside the vocabulary, or leaves no room
                for `max_tokens`; `.param` names the field at fault.
        """
        self._check_len(len(prompt_ids), params)
        named = {
            "prompt": prompt_ids,
            "logit_bias": params.logit_bias,
            "stop_token_ids": params.stop_token_ids,
        }
        for name, ids in named.items():
            if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
                raise RequestError(
                    f"{name} has token ids {min(ids)} to {max(ids)}; "
                    f"the vocabulary is 0 to {self.vocab_size - 1}",
                    param=name,
                )

    def _check_len(self, prompt_len: int, params: SamplingParams) -> None:
        room = self.max_model_len - prompt_len
        if not prompt_len:
            raise RequestError("the prompt has no tokens; pass at least one", param="prompt")
        if room < (0 if params.max_tokens == 0 else 1):
            raise RequestError(
                f"the prompt has {prompt_len} tokens and the context holds "
                f"{self.max_model_len}, answer included; shorten it",
                param="prompt",
            )
        if params.max_tokens is not None and params.max_tokens > room:
            raise RequestError(
                f"max_tokens={params.max_tokens} does not fit: the context holds "
                f"{self.max_model_len} tokens and the prompt has {prompt_len}; "
                f"use at most {room}",
                param="max_tokens",
            )
