"""The engine: takes requests, runs steps, gives back deltas. Offline use is `Engine.generate`.

Not here: when a sequence runs (scheduler.py), tensors (runner.py), threads (async_engine.py).
Reads a model folder.
"""

import secrets
import time
from collections import abc
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from llmlab.errors import ConfigError, RequestError
from llmlab.hardware import pick_device, pick_dtype
from llmlab.model import ModelConfig, load_model
from llmlab.serve.adapters import AdapterStore, wanted
from llmlab.serve.deltas import Delta, EngineStats, FinishReason, Output, TokenLogprob
from llmlab.serve.detokenize import TextStream
from llmlab.serve.pages import PagePool
from llmlab.serve.params import EngineConfig, SamplingParams
from llmlab.serve.runner import Computed, Runner
from llmlab.serve.scheduler import Scheduler
from llmlab.serve.sequence import Sequence, Slice


@dataclass(slots=True)
class _Request:
    """What the engine keeps of a request beside its sequence."""

    seq: Sequence
    text: TextStream
    prompt_logprobs: list[TokenLogprob | None] | None
    """Until the first delta carries them away; None when they are not wanted."""


class Engine:
    """A model folder, ready to generate for many requests at once.

        with Engine(folder) as engine:
            for output in engine.generate(["Once upon"], SamplingParams(max_tokens=32)):
                ...

    One thread at a time may use it; only `check`, `stats` and what concerns adapters may be called
    from others.

    Args:
        model: a model folder, or an `EngineConfig` that names one.

    Raises:
        ModelError: the folder is no model folder.
        ConfigError: the context is longer than the model's, the cache would hold no page, adapters
            would take more than their memory, or the device is not there.
    """

    def __init__(self, model: EngineConfig | Path | str) -> None:
        config = model if isinstance(model, EngineConfig) else EngineConfig(model=Path(model))
        device, dtype = pick_device(config.device), config.dtype
        if dtype == "auto":
            dtype = str(pick_dtype(device)[0]).removeprefix("torch.")
        language_model, self.tokenizer = load_model(config.model, dtype=dtype, device=device)
        self.config = config
        self.model_config: ModelConfig = language_model.config
        max_len = _context_len(config, self.model_config)
        num_pages = config.num_pages or _num_pages(config, self.model_config, dtype, max_len)
        self.max_model_len: int = min(max_len, num_pages * config.page_len)
        """Most tokens of prompt and answer together."""
        self._stop_ids = self.tokenizer.stop_token_ids.union(self.model_config.eos_token_ids)
        self._adapters = AdapterStore.of(config, language_model)
        self._runner = Runner(
            language_model,
            self.tokenizer,
            num_pages=num_pages,
            page_len=config.page_len,
            adapters=self._adapters,
        )
        for name, folder in config.adapters.items():
            self.load_adapter(name, folder)
        self._scheduler = Scheduler(
            PagePool(num_pages, config.page_len),
            max_batch_tokens=config.max_batch_tokens,
            max_running=config.max_running,
        )
        self._requests: dict[int, _Request] = {}
        self._collected: dict[int, list[tuple[float, Delta]]] = {}
        self._num_requests = self._num_prompt = self._num_generated = self._num_steps = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Abort whatever still runs. May be called twice."""
        for number in list(self._requests):
            self.abort(number)

    def generate(
        self,
        prompts: abc.Sequence[str | abc.Sequence[int]],
        params: SamplingParams | abc.Sequence[SamplingParams],
        *,
        adapter: str | abc.Sequence[str | None] | None = None,
    ) -> abc.Generator[Output, None, None]:
        """Generate for all prompts together; outputs come in the order of the prompts.

        Args:
            prompts: texts (the tokenizer's `bos_ids` are put in front) or token ids as they are.
            params: one for all, or one for each prompt.
            adapter: name of a loaded adapter, None for the base model; one for all, or one each.

        Raises:
            RequestError: a prompt is empty or does not fit the context, or there is no such
                adapter; nothing is generated.
        """
        every = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(every) != len(prompts):
            raise ConfigError(
                f"{len(every)} params for {len(prompts)} prompts; pass one for all or one for each"
            )
        ids = [self.encode(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
        is_one = adapter is None or isinstance(adapter, str)
        names = [adapter] * len(prompts) if is_one else list(adapter)
        if len(names) != len(prompts):
            raise ConfigError(
                f"{len(names)} adapters for {len(prompts)} prompts; pass one for all or one each"
            )
        for prompt_ids, own, name in zip(ids, every, names, strict=True):
            self.check(prompt_ids, own, adapter=name)
        return self._generate(ids, every, names)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a prompt: what every prompt starts with, then the text's."""
        return [*self.tokenizer.bos_ids, *self.tokenizer.encode(text)]

    def _generate(
        self,
        prompts: list[abc.Sequence[int]],
        params: list[SamplingParams],
        adapters: list[str | None],
    ) -> abc.Generator[Output, None, None]:
        start = time.monotonic()
        numbers = [
            self.submit(prompt_ids, own, adapter=name)
            for prompt_ids, own, name in zip(prompts, params, adapters, strict=True)
        ]
        self._collected.update({number: [] for number in numbers})
        try:
            for number, prompt_ids in zip(numbers, prompts, strict=True):
                while number in self._requests:
                    self._collect()
                timed = self._collected.pop(number)
                first = next((at for at, delta in timed if delta.token_ids), None)
                yield Output.from_deltas(
                    prompt_ids,
                    [delta for _, delta in timed],
                    first_token_s=None if first is None else first - start,
                    total_s=timed[-1][0] - start,
                )
        finally:
            for number in numbers:
                self._collected.pop(number, None)
                self.abort(number)

    def _collect(self) -> None:
        for number, delta in self.step():
            if number in self._collected:
                self._collected[number].append((time.monotonic(), delta))

    def check(
        self, prompt_ids: abc.Sequence[int], params: SamplingParams, *, adapter: str | None = None
    ) -> None:
        """Refuse what this model can never do; safe to call from any thread.

        Raises:
            RequestError: the prompt is empty, has ids outside the vocabulary, or leaves no room
                for `max_tokens`, or there is no such adapter; `.param` names the field at fault.
        """
        if adapter is not None:
            wanted(self._adapters).check(adapter)
        V, room = self.tokenizer.vocab_size, self.max_model_len - len(prompt_ids)
        if not prompt_ids:
            raise RequestError("the prompt has no tokens; pass at least one", param="prompt")
        if room < (0 if params.max_tokens == 0 else 1):
            raise RequestError(
                f"the prompt has {len(prompt_ids)} tokens and the context holds "
                f"{self.max_model_len}, answer included; shorten it",
                param="prompt",
            )
        if params.max_tokens is not None and params.max_tokens > room:
            raise RequestError(
                f"max_tokens={params.max_tokens} does not fit: the context holds "
                f"{self.max_model_len} tokens and the prompt has {len(prompt_ids)}; "
                f"use at most {room}",
                param="max_tokens",
            )
        named = {
            "prompt": prompt_ids,
            "logit_bias": params.logit_bias,
            "stop_token_ids": params.stop_token_ids,
        }
        for name, ids in named.items():
            if ids and not 0 <= min(ids) <= max(ids) < V:
                raise RequestError(
                    f"{name} has token ids {min(ids)} to {max(ids)}; "
                    f"the vocabulary is 0 to {V - 1}",
                    param=name,
                )

    @property
    def adapters(self) -> dict[str, Path]:
        """Folders of the adapters that requests may name."""
        return {} if self._adapters is None else self._adapters.names

    def load_adapter(self, name: str, folder: Path | str) -> None:
        """Load an adapter while requests run; when it cannot be loaded, nothing has changed.

        Raises:
            ConfigError: the name is taken or no name, or `max_loras` adapters are loaded.
            ModelError: the folder is no adapter for this model, or one of too high a rank.
        """
        wanted(self._adapters).load(name, folder)

    def unload_adapter(self, name: str) -> None:
        """Refuse new requests for an adapter; it goes when the last one that has it has ended.

        Raises:
            RequestError: there is none of this name.
        """
        wanted(self._adapters).unload(name)

    def submit(
        self, prompt_ids: abc.Sequence[int], params: SamplingParams, *, adapter: str | None = None
    ) -> int:
        """Queue one request and return its number.

        Args:
            prompt_ids: the prompt.
            params: how it is sampled.
            adapter: name of a loaded adapter; None for the base model.

        Raises:
            RequestError: as `check`.
        """
        self.check(prompt_ids, params)
        num_prompt = len(prompt_ids)
        own_stops = frozenset() if params.ignore_eos else self._stop_ids
        seq = Sequence(
            number=self._num_requests,
            prompt_len=num_prompt,
            token_ids=list(prompt_ids),
            params=params,
            max_len=self.max_model_len
            if params.max_tokens is None
            else num_prompt + params.max_tokens,
            seed=secrets.randbits(63) if params.seed is None else params.seed,
            stop_ids=own_stops.union(params.stop_token_ids),
            adapter=None if adapter is None else wanted(self._adapters).acquire(adapter),
        )
        self._scheduler.add(seq)
        self._requests[seq.number] = _Request(
            seq,
            TextStream(self.tokenizer, params.stop),
            None if params.prompt_logprobs is None else [None],
        )
        self._num_requests += 1
        self._num_prompt += num_prompt
        return seq.number

    def step(self) -> list[tuple[int, Delta]]:
        """Run one forward pass; return what it added, by request number.

        A step that only reads parts of prompts adds nothing; so does one without work.
        """
        slices = self._scheduler.schedule()
        if not slices:
            return []
        results = self._runner.run(slices)
        self._scheduler.computed(slices)
        self._num_steps += 1
        deltas: list[tuple[int, Delta]] = []
        for part, result in zip(slices, results, strict=True):
            delta = self._advance(self._requests[part.seq.number], part, result)
            if delta is not None:
                deltas.append((part.seq.number, delta))
                if delta.finish_reason is not None:
                    self._forget(part.seq.number)
        return deltas

    def abort(self, number: int) -> None:
        """Forget a request and free its pages; one that is finished is no error."""
        if number in self._requests:
            self._forget(number)

    @property
    def has_work(self) -> bool:
        """True while a request is not finished."""
        return bool(self._requests)

    def stats(self) -> EngineStats:
        """Return the counters; safe to call from any thread."""
        return EngineStats(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            free_pages=self._scheduler.pool.num_free,
            num_pages=self._scheduler.pool.num_pages,
            prompt_tokens=self._num_prompt,
            generated_tokens=self._num_generated,
            requests=self._num_requests,
            preemptions=self._scheduler.num_preemptions,
            steps=self._num_steps,
        )

    def _advance(self, request: _Request, part: Slice, result: Computed) -> Delta | None:
        """Add what a step found to its request; None when there is nothing to tell yet."""
        seq = request.seq
        if request.prompt_logprobs is not None:
            request.prompt_logprobs += result.prompt_logprobs
            seq.num_scored += len(result.prompt_logprobs)
        if not part.is_last:
            return None
        text, finish_reason = "", "length"  # what becomes of a request that wants no token
        if result.token_id is not None:
            seq.token_ids.append(result.token_id)
            self._num_generated += 1
            text, finish_reason = _read(request, result.token_id)
        prompt_logprobs, request.prompt_logprobs = request.prompt_logprobs, None
        return Delta(
            text=text,
            token_ids=() if result.token_id is None else (result.token_id,),
            logprobs=() if result.logprob is None else (result.logprob,),
            finish_reason=finish_reason,
            prompt_logprobs=None if prompt_logprobs is None else tuple(prompt_logprobs),
        )

    def _forget(self, number: int) -> None:
        seq = self._requests.pop(number).seq
        self._scheduler.remove(seq)
        if seq.adapter is not None:
            wanted(self._adapters).release(seq.adapter)


def _read(request: _Request, token_id: int) -> tuple[str, FinishReason | None]:
    """Return the text that a token adds and whether the request ends with it."""
    seq = request.seq
    if token_id in seq.stop_ids:
        return request.text.finish()[0], "stop"
    may_stop = seq.num_generated > seq.params.min_tokens
    text, stopped = request.text.push(token_id, may_stop=may_stop)
    if stopped:
        return text, "stop"
    if len(seq.token_ids) < seq.max_len:
        return text, None
    rest, stopped = request.text.finish()
    return text + rest, "stop" if stopped else "length"


def _context_len(config: EngineConfig, model: ModelConfig) -> int:
    longest = model.max_position_embeddings
    if model.is_recurrent:
        raise ConfigError(
            f"{config.model} is a {model.architecture}, whose state does not lie in pages; "
            "use llmlab generate"
        )
    window = model.sliding_window
    if window is not None and window < (config.max_model_len or longest):
        raise ConfigError(
            f"{config.model} has a sliding_window of {window} tokens, and pages are attended to "
            f"whole; pass max_model_len={window}, up to which that is the same"
        )
    if config.max_model_len is not None and config.max_model_len > longest:
        raise ConfigError(
            f"max_model_len={config.max_model_len} is above the {longest} positions the model "
            "was trained for; lower it or leave it out"
        )
    return config.max_model_len or longest


def _num_pages(config: EngineConfig, model: ModelConfig, dtype: str, max_len: int) -> int:
    """Return how many pages fit the memory, but no more than can ever be used."""
    item_bytes = 2 if dtype == "bfloat16" else 4
    token_bytes = (
        2 * model.num_hidden_layers * model.num_key_value_heads * model.head_dim * item_bytes
    )
    page_bytes = token_bytes * config.page_len
    usable = -(-max_len // config.page_len) * config.max_running
    num_pages = min(int(config.kv_memory_mb * 1e6 // page_bytes), usable)
    if num_pages < 1:
        raise ConfigError(
            f"kv_memory_mb={config.kv_memory_mb} holds no page: one takes {page_bytes / 1e6:.1f} "
            "MB; raise it or lower page_len"
        )
    return num_pages
