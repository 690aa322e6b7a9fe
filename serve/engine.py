"""The engine: takes requests, runs steps, gives back deltas. Offline use is `Engine.generate`.

Not here: when a sequence runs (scheduler.py), what a request says (request.py), tensors
(runner.py), threads (async_engine.py).
Reads a model folder.
"""

import secrets
import time
from collections import abc
from pathlib import Path
from typing import Self

from llmlab.errors import ConfigError
from llmlab.hardware import pick_device, pick_dtype
from llmlab.model import ModelConfig, load_model
from llmlab.serve.deltas import Delta, EngineStats, Output
from llmlab.serve.grammar.compiler import GrammarCompiler
from llmlab.serve.grammar.spec import GrammarSpec
from llmlab.serve.grammar.state import GrammarState
from llmlab.serve.limits import Limits
from llmlab.serve.next_tokens import Computed
from llmlab.serve.pace import Pace
from llmlab.serve.pages import PagePool
from llmlab.serve.params import EngineConfig, SamplingParams
from llmlab.serve.prefix_cache import PrefixCache
from llmlab.serve.request import Request
from llmlab.serve.runner import Runner
from llmlab.serve.scheduler import Scheduler
from llmlab.serve.sequence import Sequence, Slice, Step
from llmlab.serve.sizes import context_len, num_pages_for
from llmlab.serve.speculation import StepCost, draft_lens


class Engine:
    """A model folder, ready to generate for many requests at once.

        with Engine(folder) as engine:
            for output in engine.generate(["Once upon"], SamplingParams(max_tokens=32)):
                ...

    One thread at a time may use it; only `check`, `stats` and `grammars` may be used by others.

    Args:
        model: a model folder, or an `EngineConfig` that names one.

    Raises:
        ModelError: the folder is no model folder.
        ConfigError: the context is longer than the model's, the cache would hold no page, or the
            device is not there.
    """

    def __init__(self, model: EngineConfig | Path | str) -> None:
        config = model if isinstance(model, EngineConfig) else EngineConfig(model=Path(model))
        device, dtype = pick_device(config.device), config.dtype
        if dtype == "auto":
            dtype = str(pick_dtype(device)[0]).removeprefix("torch.")
        language_model, self.tokenizer = load_model(config.model, dtype=dtype, device=device)
        self.config = config
        self.model_config: ModelConfig = language_model.config
        max_len = context_len(config, self.model_config)
        num_pages = config.num_pages or num_pages_for(config, self.model_config, dtype, max_len)
        self.max_model_len: int = min(max_len, num_pages * config.page_len)
        """Most tokens of prompt and answer together."""
        self._limits = Limits(self.tokenizer.vocab_size, self.max_model_len)
        self._stop_ids = self.tokenizer.stop_token_ids.union(self.model_config.eos_token_ids)
        self._runner = Runner(
            language_model,
            self.tokenizer,
            num_pages=num_pages,
            page_len=config.page_len,
            max_len=self.max_model_len,
            scheme=config.quantize,
            has_int8_kv=config.kv_dtype == "int8",
        )
        self.grammars = GrammarCompiler(self.tokenizer, stop_ids=self.model_config.eos_token_ids)
        """Compiles what requests ask for; any thread may use it."""
        self._cost = StepCost()
        cache = PrefixCache(config.page_len) if config.prefix_cache else None
        self._pace = None if config.itl_ratio is None else Pace(config.itl_ratio)
        self._scheduler = Scheduler(
            PagePool(num_pages, config.page_len, cache),
            max_batch_tokens=config.max_batch_tokens,
            max_running=config.max_running,
            pace=self._pace,
        )
        self._requests: dict[int, Request] = {}
        self._collected: dict[int, list[tuple[float, Delta]]] = {}
        self._num_requests = self._num_prompt = self._num_generated = self._num_steps = 0
        self._num_drafted = self._num_right = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Abort whatever still runs. May be called twice."""
        for number in list(self._requests):
            self.abort(number)
        self.grammars.close()

    def generate(
        self,
        prompts: abc.Sequence[str | abc.Sequence[int]],
        params: SamplingParams | abc.Sequence[SamplingParams],
    ) -> abc.Generator[Output, None, None]:
        """Generate for all prompts together; outputs come in the order of the prompts.

        Args:
            prompts: texts (the tokenizer's `bos_ids` are put in front) or token ids as they are.
            params: one for all, or one for each prompt.

        Raises:
            RequestError: a prompt is empty or does not fit the context; nothing is generated. The
                first output raises it where a grammar does not compile.
        """
        every = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(every) != len(prompts):
            raise ConfigError(
                f"{len(every)} params for {len(prompts)} prompts; pass one for all or one for each"
            )
        ids = [self.encode(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
        for prompt_ids, own in zip(ids, every, strict=True):
            self.check(prompt_ids, own)
        return self._generate(ids, every)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a prompt: what every prompt starts with, then the text's."""
        return [*self.tokenizer.bos_ids, *self.tokenizer.encode(text)]

    def _generate(
        self, prompts: list[abc.Sequence[int]], params: list[SamplingParams]
    ) -> abc.Generator[Output, None, None]:
        start = time.monotonic()
        numbers: list[int] = []
        try:
            for prompt_ids, own in zip(prompts, params, strict=True):
                # Nobody reads these as they come: prompts are read as fast as the machine can.
                number = self.submit(prompt_ids, own, is_streamed=False)
                numbers.append(number)
                self._collected[number] = []
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

    def check(self, prompt_ids: abc.Sequence[int], *params: SamplingParams) -> None:
        """Refuse what this model can never do; safe to call from any thread.

        Args:
            prompt_ids: a prompt.
            params: how it is to be sampled, once or several times.

        Raises:
            RequestError: the prompt is empty, has ids outside the vocabulary, or leaves no room
                for `max_tokens`; `.param` names the field at fault.
        """
        self._limits.check(prompt_ids, *params)

    def submit(
        self,
        prompt_ids: abc.Sequence[int],
        params: SamplingParams,
        *,
        client: str = "",
        is_streamed: bool = True,
    ) -> int:
        """Queue one request and return its number.

        Args:
            prompt_ids: the prompt.
            params: how it is sampled.
            client: who asks; among requests of one priority, the client that had the least
                service goes first.
            is_streamed: whether someone reads the tokens as they come; the prompts of others then
                take no larger share of a step than `itl_ratio` allows.

        Raises:
            RequestError: as `check`, or its grammar does not compile.
        """
        return self.submit_group(prompt_ids, [params], client=client, is_streamed=is_streamed)[0]

    def submit_group(
        self,
        prompt_ids: abc.Sequence[int],
        params: abc.Sequence[SamplingParams],
        *,
        client: str = "",
        is_streamed: bool = True,
    ) -> list[int]:
        """Queue several requests with one prompt and return their numbers.

        The prompt is computed once, unless they want its log-probabilities or differ in
        `cache_salt`; they share its pages until each writes its own tokens.

        Args:
            prompt_ids: the prompt of all.
            params: how each is sampled; at least one.
            client: who asks.
            is_streamed: as for `submit`.

        Raises:
            RequestError: as `check`, or a grammar does not compile; nothing is queued.
        """
        self.check(prompt_ids, *params)
        grammars = self._states([own.grammar for own in params])
        seqs = [
            self._new_sequence(number, prompt_ids, own, grammar, client, is_streamed)
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
        self._requests.update({seq.number: Request(seq, self.tokenizer) for seq in seqs})
        self._num_requests += len(seqs)
        self._num_prompt += len(prompt_ids)
        return [seq.number for seq in seqs]

    def _states(self, specs: abc.Sequence[GrammarSpec | None]) -> list[GrammarState | None]:
        """Return where each request starts in its grammar; equal ones are compiled once."""
        compiled = {spec: self.grammars.compile(spec) for spec in {*specs} if spec is not None}
        return [None if spec is None else compiled[spec].state() for spec in specs]

    def _new_sequence(
        self,
        number: int,
        prompt_ids: abc.Sequence[int],
        params: SamplingParams,
        grammar: GrammarState | None,
        client: str,
        is_streamed: bool,
    ) -> Sequence:
        num_prompt = len(prompt_ids)
        own_stops = frozenset() if params.ignore_eos else self._stop_ids
        return Sequence(
            number=number,
            prompt_len=num_prompt,
            token_ids=list(prompt_ids),
            params=params,
            max_len=self.max_model_len
            if params.max_tokens is None
            else num_prompt + params.max_tokens,
            seed=secrets.randbits(63) if params.seed is None else params.seed,
            stop_ids=own_stops.union(params.stop_token_ids),
            grammar=grammar,
            client=client,
            is_streamed=is_streamed,
        )

    def step(self) -> list[tuple[int, Delta]]:
        """Run one forward pass; return what it added, by request number.

        A step that only reads parts of prompts adds nothing; so does one without work.
        """
        if self.config.speculate != "none":
            self._draft()
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
            self._cost.observe(step.num_decode_tokens, seconds)
        if self._pace is not None:
            self._pace.observe(step.num_decode_tokens, step.num_prompt_tokens, seconds)
        return results

    def _draft(self) -> None:
        """Guess what comes next in the sequences that decode, as far as guessing pays."""
        seqs = [seq for seq in self._scheduler.running if seq.num_pending == 1]
        requests = [self._requests[seq.number] for seq in seqs]
        guesses = [
            request.guesses.guess(request.seq.token_ids, self.config.draft_len)
            for request in requests
        ]
        lens = [len(guess) for guess in guesses]
        if self.config.adapt_drafts:
            chances = [request.chance.value for request in requests]
            lens = draft_lens(chances, lens, len(seqs), self._cost)
        for seq, guess, length in zip(seqs, guesses, lens, strict=True):
            seq.draft = tuple(guess[:length])

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
        self._scheduler.remove(self._requests.pop(number).seq)
