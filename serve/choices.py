"""From prompts to the deltas of all choices of one request, n for each prompt, side by side.

Not here: JSON. Choice number `prompt * n + i` is the i-th choice of a prompt, as at OpenAI.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

from llmlab.errors import ServerError
from llmlab.serve.backend import Backend
from llmlab.serve.deltas import Delta
from llmlab.serve.envelope import ApiError
from llmlab.serve.params import SamplingParams
from llmlab.serve.streams import Stream

Deltas = AsyncIterator[tuple[int, Delta]]
"""The deltas of several choices as they come, each with the number of its choice."""


def token_budget(
    num_prompt_tokens: int, asked: int | None, *, default: int | None, max_model_len: int
) -> int:
    """Return how many tokens may be generated.

    Args:
        num_prompt_tokens: length of the prompt.
        asked: what the request asks for; None takes `default`, or what is left of the context.
        default: limit when none is asked for; None has none.
        max_model_len: most tokens of prompt and answer together.

    Raises:
        ApiError: prompt and answer do not fit.
    """
    room = max_model_len - num_prompt_tokens
    needed = 1 if asked is None else asked
    if needed > room:
        raise ApiError(
            f"this model's maximum context length is {max_model_len} tokens, but the prompt has "
            f"{num_prompt_tokens} and the answer may take {needed}; shorten the prompt or lower "
            "max_tokens",
            param="max_tokens" if num_prompt_tokens < max_model_len else "prompt",
            code="context_length_exceeded",
        )
    if asked is not None:
        return asked
    return room if default is None else min(default, room)


@asynccontextmanager
async def running_choices(
    engine: Backend,
    requests: Sequence[tuple[Sequence[int], SamplingParams]],
    *,
    adapter: str | None = None,
    client: str = "",
    is_streamed: bool = True,
) -> AsyncIterator[Deltas]:
    """Queue every request at once and yield their deltas; leaving the block aborts what still runs.

    Args:
        engine: where they run.
        requests: prompts and how they are sampled; the prompt of neighbours is computed once.
        adapter: name of a loaded adapter; None for the base model.
        client: who asks, of those the engine is fair between.
        is_streamed: whether the deltas are passed on as they come.

    Raises:
        RequestError: the engine refuses one of them, or a grammar; the others are aborted.
        ServerError: the engine has stopped.
    """
    most = engine.config.max_running + engine.config.max_waiting
    if len(requests) > most:
        raise ApiError(
            f"the request asks for {len(requests)} choices (prompts times n), but this "
            f"server holds {most}; send fewer, or start the server with a larger "
            "--max-waiting",
            param="n",
        )
    # Before anything is queued: a grammar takes up to seconds, and it may be refused.
    for params in {params.grammar: params for _, params in requests}.values():
        await engine.prepare(params)
    streams: list[Stream] = []
    try:
        for prompt_ids, params in _by_prompt(requests):
            streams += engine.streams(
                prompt_ids, params, adapter=adapter, client=client, is_streamed=is_streamed
            )
        async with aclosing(_merged(streams)) as deltas:
            yield deltas
    finally:
        for stream in streams:
            await stream.aclose()


def _by_prompt(
    requests: Sequence[tuple[Sequence[int], SamplingParams]],
) -> list[tuple[Sequence[int], list[SamplingParams]]]:
    """Bring neighbours with the same prompt together."""
    groups: list[tuple[Sequence[int], list[SamplingParams]]] = []
    for prompt_ids, params in requests:
        last = groups[-1][0] if groups else ()
        if prompt_ids is last or prompt_ids == last:
            groups[-1][1].append(params)
        else:
            groups.append((prompt_ids, [params]))
    return groups


async def _merged(streams: Sequence[Stream]) -> AsyncGenerator[tuple[int, Delta]]:
    """Yield from all streams as their deltas come; one task a stream feeds a queue."""
    ready: asyncio.Queue[tuple[int, Delta] | asyncio.Task[None]] = asyncio.Queue()

    async def pull(index: int, stream: Stream) -> None:
        async for delta in stream:
            if delta.finish_reason == "abort":
                raise ServerError("the server stops; send the request again later")
            ready.put_nowait((index, delta))

    tasks = [asyncio.create_task(pull(index, stream)) for index, stream in enumerate(streams)]
    for task in tasks:
        task.add_done_callback(ready.put_nowait)
    num_open = len(tasks)
    try:
        while num_open:
            item = await ready.get()
            if isinstance(item, asyncio.Task):
                num_open -= 1
                item.result()  # raises what the stream met
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
