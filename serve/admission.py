"""What a model can never do is refused before it is queued.

Not here: what any request may ask for (params.py), whether there is room now (async_engine.py).
"""

from collections import abc

from llmlab.errors import RequestError
from llmlab.serve.params import SamplingParams


def check_request(
    prompt_ids: abc.Sequence[int],
    params: abc.Sequence[SamplingParams],
    *,
    vocab_size: int,
    max_model_len: int,
) -> None:
    """Refuse a prompt, or a way to sample it, that this model cannot serve.

    Args:
        prompt_ids: a prompt.
        params: how it is to be sampled, once or several times.
        vocab_size: V, the tokenizer's.
        max_model_len: most tokens of prompt and answer together.

    Raises:
        RequestError: the prompt is empty, has ids outside the vocabulary, or leaves no room for
            `max_tokens`; `.param` names the field at fault.
    """
    room = max_model_len - len(prompt_ids)
    if not prompt_ids:
        raise RequestError("the prompt has no tokens; pass at least one", param="prompt")
    if room < (0 if all(own.max_tokens == 0 for own in params) else 1):
        raise RequestError(
            f"the prompt has {len(prompt_ids)} tokens and the context holds "
            f"{max_model_len}, answer included; shorten it",
            param="prompt",
        )
    _check_ids("prompt", prompt_ids, vocab_size)
    for own in params:
        if own.max_tokens is not None and own.max_tokens > room:
            raise RequestError(
                f"max_tokens={own.max_tokens} does not fit: the context holds "
                f"{max_model_len} tokens and the prompt has {len(prompt_ids)}; "
                f"use at most {room}",
                param="max_tokens",
            )
        _check_ids("logit_bias", own.logit_bias, vocab_size)
        _check_ids("stop_token_ids", own.stop_token_ids, vocab_size)


def _check_ids(name: str, ids: abc.Collection[int], vocab_size: int) -> None:
    if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
        raise RequestError(
            f"{name} has token ids {min(ids)} to {max(ids)}; the vocabulary is 0 to "
            f"{vocab_size - 1}",
            param=name,
        )
