"""Continue a prompt, token by token; what was read is remembered, not read again.

One prompt at a time, for the command line, notebooks and tests; many at once is the server's job
(serve), which uses the same sampler.
"""

from collections.abc import Iterator, Sequence

import torch

from llmlab.errors import ModelError
from llmlab.model.language_model import LanguageModel
from llmlab.model.sampling import SamplingRows, sample
from llmlab.tokenizers import Tokenizer


def generate(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    *,
    max_tokens: int = 256,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
) -> Iterator[str]:
    """Yield the continuation of a prompt as pieces of text, never half a character.

    Args:
        model: in eval mode, on the device and in the dtype it shall run.
        tokenizer: the model's.
        prompt: text (a BOS goes in front if the tokenizer wants one), or token ids as they are.
        max_tokens: most tokens to generate.
        temperature: 0 takes the most likely token each time.
        top_k: 0 is off.
        top_p: 1 is off.
        min_p: 0 is off.
        repetition_penalty: 1 is off.
        seed: decides the random numbers.

    Raises:
        ModelError: the prompt is empty or leaves no room in the model's context.
    """
    if isinstance(prompt, str):
        prompt = [*tokenizer.bos_ids, *tokenizer.encode(prompt)]
    stops = tokenizer.stop_token_ids | set(model.config.eos_token_ids)
    token_ids = generate_ids(
        model,
        prompt,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop_token_ids=stops,
    )
    stream = tokenizer.stream()
    for token_id in token_ids:
        if token_id not in stops:
            text = stream.push(token_id)
            if text:
                yield text
    rest = stream.finish()
    if rest:
        yield rest


@torch.inference_mode()
def generate_ids(
    model: LanguageModel,
    prompt_ids: Sequence[int],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    stop_token_ids: frozenset[int] | set[int] = frozenset(),
) -> Iterator[int]:
    """Yield token ids that continue `prompt_ids`; a stop token is the last one.

    Arguments are those of `generate`. Generation also ends at the model's context length.

    Raises:
        ModelError: the prompt is empty or leaves no room in the model's context.
    """
    room = model.config.max_position_embeddings - len(prompt_ids)
    if not prompt_ids or room < 1:
        raise ModelError(
            f"the prompt has {len(prompt_ids)} tokens; pass between 1 and "
            f"{model.config.max_position_embeddings - 1} for this model"
        )
    num_tokens = min(max_tokens, room)
    device = model.head_weight().device
    read = model.reader(batch_size=1, max_len=len(prompt_ids) + num_tokens)
    new_ids, output_ids = list(prompt_ids), []
    for step in range(num_tokens):
        hidden = read(torch.tensor([new_ids], device=device))  # (1, T, E)
        rows = SamplingRows(
            temperature=[temperature],
            seed=[seed],
            num_sampled=[step],
            top_k=[top_k],
            top_p=[top_p],
            min_p=[min_p],
            repetition_penalty=[repetition_penalty],
            prompt_ids=[prompt_ids],
            output_ids=[output_ids],
        )
        token_id = int(sample(model.logits(hidden[:, -1]), rows))
        yield token_id
        if token_id in stop_token_ids:
            return
        output_ids.append(token_id)
        new_ids = [token_id]
