"""The engine: takes requests, runs steps, gives back deltas. Offline use is `Engine.generate`.

Not here: when a sequence runs (scheduler.py), what a request says (request.py), what is refused
(admission.py), tensors (runner.py), threads (async_engine.py).
Reads a model folder.
"""

import time
from collections import abc
from pathlib import Path
from typing import Self

from llmlab.errors import ConfigError
from llmlab.hardware import pick_device, pick_dtype
from llmlab.model import ModelConfig, load_config
from llmlab.serve.adapters import AdapterHold, wanted
from llmlab.serve.deltas import Delta, EngineStats, Output
from llmlab.serve.draft_model import DraftModel
from llmlab.serve.drafting import Drafting
from llmlab.serve.grammar.compiler import GrammarCompiler
from llmlab.serve.grammar.spec import GrammarSpec
from llmlab.serve.grammar.state import GrammarState
from llmlab.serve.limits import Limits
from llmlab.serve.loading import load_runner
from llmlab.serve.next_tokens import Computed
from llmlab.serve.offline import Collector
from llmlab.serve.pace import Pace
from llmlab.serve.pages import PagePool
from llmlab.serve.params import EngineConfig, SamplingParams
from llmlab.serve.prefix_cache import PrefixCache
from llmlab.serve.request import Request
from llmlab.serve.scheduler import Scheduler
from llmlab.serve.sequence import Sequence, Slice, Step
from llmlab.serve.sizes import context_len, num_pages_for


class Engine:
    """A model folder, ready to generate for many requests at once.

        with Engine(folder) as engine:
            for output in engine.generate(["Once upon"], SamplingParams(max_tokens=32)):
                ...

    One thread at a time may use it; only `check`, `stats`, `grammars` and what concerns adapters
    may be used by others.

    Args:
        model: a model folder, or an `EngineConfig` that names one.

    Raises:
        ModelError: the folder is no model folder.
        ConfigError: the context is longer than the model's, the cache would hold no page, adapters
            would take more than their memory, or the device is not there; or it does not divide
            among the processes.
        ServerError: one of several processes could not start.
    """

    def __init__(self, model: EngineConfig | Path | str) -> None:
        config = model if isinstance(model, EngineConfig) else EngineConfig(model=Path(model))
        device, dtype = pick_device(config.device), config.dtype
        if dtype == "auto":
            dtype = str(pick_dtype(device)[0]).removeprefix("torch.")
        self.config = config
        self.model_config: ModelConfig = load_config(config.model)
        max_len = context_len(config, self.model_config)
        num_pages = config.num_pages or num_pages_for(config, self.model_config, dtype, max_len)
        self.max_model_len: int = min(max_len, num_pages * config.page_len)
        """Most tokens of prompt and answer together."""
        self._runner, self.tokenizer, self._adapters = load_runner(
            config,
            self.model_config,
            device=device,
            dtype=dtype,
            num_pages=num_pages,
            max_len=self.max_model_len,
        )
        for name, folder in config.adapters.items():
            self.load_adapter(name, folder)
        self._limits = Limits(self.tokenizer.vocab_size, self.max_model_len)
        self._stop_ids = self.tokenizer.stop_token_ids.union(self.model_config.eos_token_ids)
        self.grammars = GrammarCompiler(self.tokenizer, stop_ids=self.model_config.eos_token_ids)
        """Compiles what requests ask for; any thread may use it."""
        draft_model = None
        if config.speculate == "draft":
            draft_model = DraftModel(
                config,
                self.tokenizer,
                device=device,
                dtype=dtype,
                num_pages=num_pages,
                max_len=self.max_model_len,
            )
        cache = PrefixCache(config.page_len) if config.prefix_cache else None
        self._pace = None if config.itl_ratio is None else Pace(config.itl_ratio)
        self._scheduler = Scheduler(
            PagePool(num_pages, config.page_len, cache),
            max_batch_tokens=config.max_batch_tokens,
            max_running=config.max_running,
            pace=self._pace,
        )
        self._drafting = Drafting(config, draft_model, self._scheduler.room_for_draft)
        self._requests: dict[int, Request] = {}
        self._collector = Collector()
        self._num_requests = self._num_prompt = self._num_generated = self._num_steps = 0
        self._num_drafted = self._num_right = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Abort whatever still runs, and end the other processes. May be called twice."""
        for number in list(self._requests):
            self.abort(number)
        self.grammars.close()
        self._runner.close()

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
                adapter; nothing is generated. The first output raises it where a grammar does not
                compile.
        """
        every = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        is_one = adapter is None or isinstance(adapter, str)
        names = [adapter] * len(prompts) if is_one else list(adapter)
        for what, own in (("params", every), ("adapters", names)):
            if len(own) != len(prompts):
                raise ConfigError(
                    f"{len(own)} {what} for {len(prompts)} prompts; pass one for all or one for "
                    "each"
                )
        ids = [self.encode(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
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
        numbers: list[int] = []
        try:
            for prompt_ids, own, name in zip(prompts, params, adapters, strict=True):
                # Nobody reads these as they come: prompts are read as fast as the machine can.
                numbers.append(self.submit(prompt_ids, own, adapter=name, is_streamed=False))
            yield from self._collector.outputs(
                numbers, prompts, step=self.step, running=self._requests, start=start
            )
        finally:
            for number in numbers:
                self.abort(number)

    def check(
        self,
        prompt_ids: abc.Sequence[int],
        *params: SamplingParams,
        adapter: str | None = None,
    ) -> None:
        """Refuse what this model can never do; safe to call from any thread.

        Args:
            prompt_ids: a prompt.
            params: how it is to be sampled, once or several times.
            adapter: name of a loaded adapter; None for the base model.

        Raises:
            RequestError: the prompt is empty, has ids outside the vocabulary, or leaves no room
                for `max_tokens`, or there is no such adapter; `.param` names the field at fault.
        """
        if adapter is not None:
            wanted(self._adapters).check(adapter)
        self._limits.check(prompt_ids, *params)

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
        self,
        prompt_ids: abc.Sequence[int],
        params: SamplingParams,
        *,
        adapter: str | None = None,
        client: str = "",
        is_streamed: bool = True,
    ) -> int:
        """Queue one request and return its number.

        Args:
            prompt_ids: the prompt.
            params: how it is sampled.
            adapter: name of a loaded adapter; None for the base model.
            client: who asks; among requests of one priority, the client that had the least
                service goes first.
            is_streamed: whether someone reads the tokens as they come; the prompts of others then
                take no larger share of a step than `itl_ratio` allows.

        Raises:
            RequestError: as `check`, or its grammar does not compile.
        """
        return self.submit_group(
            prompt_ids, [params], adapter=adapter, client=client, is_streamed=is_streamed
        )[0]

    def submit_group(
        self,
        prompt_ids: abc.Sequence[int],
        params: abc.Sequence[SamplingParams],
        *,
        adapter: str | None = None,
        client: str = "",
        is_streamed: bool = True,
    ) -> list[int]:
        """Queue several requests with one prompt and return their numbers.

        The prompt is computed once, unless they want its log-probabilities or differ in
        `cache_salt`; they share its pages until each writes its own tokens.

        Args:
            prompt_ids: the prompt of all.
            params: how each is sampled; at least one.
            adapter: that of all; None for the base model.
            client: who asks.
            is_streamed: as for `submit`.

        Raises:
            RequestError: as `check`, or a grammar does not compile; nothing is queued.
        """
        self.check(prompt_ids, *params, adapter=adapter)
        grammars = self._states([own.grammar for own in params])
        hold = None
        if adapter is not None:
            hold = AdapterHold(wanted(self._adapters), adapter, len(params))
        seqs = [
            Sequence.of(
                number,
                prompt_ids,
                own,
                max_model_len=self.max_model_len,
                model_stop_ids=self._stop_ids,
                grammar=grammar,
                adapter=None if hold is None else hold.key,
                client=client,
                is_streamed=is_streamed,
            )
            for number, (own, grammar) in enumerate(
                zip(params, grammars, strict=True), self._num_requests
            )
        ]
        is_shared = all(own.prompt_logprobs is None for own in params)
        if is_shared and len({own.cache_salt for own in params}) == 1:
            self._scheduler.add(*seqs)
        else:
            for seq in seqs:
                self._scheduler.add(seq)
        self._requests.update({seq.number: Request(seq, self.tokenizer, hold) for seq in seqs})
        self._num_requests += len(seqs)
        self._num_prompt += len(prompt_ids)
        return [seq.number for seq in seqs]

    def _states(self, specs: abc.Sequence[GrammarSpec | None]) -> list[GrammarState | None]:
        """Return where each request starts in its grammar; equal ones are compiled once."""
        compiled = {spec: self.grammars.compile(spec) for spec in {*specs} if spec is not None}
        return [None if spec is None else compiled[spec].state() for spec in specs]

    def step(self) -> list[tuple[int, Delta]]:
        """Run one forward pass; return what it added, by request number.

        A step that only reads parts of prompts adds nothing; so does one without work.
        """
        if self.config.speculate != "none":
            decoding = [seq for seq in self._scheduler.running if seq.num_pending == 1]
            self._drafting.draft([self._requests[seq.number] for seq in decoding])
        step = self._scheduler.schedule()
        if not step.slices:
            return []
        results = self._compute(step)
        self._scheduler.computed(step.slices)
        self._num_steps += 1
        deltas: list[tuple[int, Delta]] = []
        for part, result in zip(step.slices, results, strict=True):
            delta = self._requests[part.seq.number].advance(part, result)
            if delta is not None:
                self._count(part, delta)
                deltas.append((part.seq.number, delta))
                if delta.finish_reason is not None:
                    self._forget(part.seq.number)
        return deltas

    def _compute(self, step: Step) -> list[Computed]:
        start = time.perf_counter()
        if step.copies:
            self._runner.copy_pages(step.copies)
        results = self._runner.run(step.slices)
        seconds = time.perf_counter() - start
        if not step.num_prompt_tokens:
            self._drafting.cost.observe(step.num_decode_tokens, seconds)
        if self._pace is not None:
            self._pace.observe(step.num_decode_tokens, step.num_prompt_tokens, seconds)
        return results

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
        plan = self._scheduler
        return EngineStats(
            running=len(plan.running),
            waiting=len(plan.waiting) + plan.num_parked,
            free_pages=plan.pool.num_free,
            cached_pages=plan.pool.num_cached,
            num_pages=plan.pool.num_pages,
            prompt_tokens=self._num_prompt,
            prefix_queries=plan.num_looked_up,
            prefix_hits=plan.num_found,
            generated_tokens=self._num_generated,
            requests=self._num_requests,
            preemptions=plan.num_preemptions,
            copies=plan.num_copies,
            drafted_tokens=self._num_drafted,
            accepted_tokens=self._num_right,
            steps=self._num_steps,
        )

    def _count(self, part: Slice, delta: Delta) -> None:
        self._num_generated += len(delta.token_ids)
        self._num_drafted += len(part.draft)
        num_right = len(delta.token_ids) - 1
        if num_right > 0:
            self._num_right += num_right
            self._scheduler.drafted(part.seq, num_right)

    def _forget(self, number: int) -> None:
        request = self._requests.pop(number)
        self._scheduler.remove(request.seq)
        if request.hold is not None:
            request.hold.drop()
