"""What a request may ask for and what an engine is started with; torch-free, checked when built.

Not here: what only the loaded model can tell (does the prompt fit the context, is a token id in
the vocabulary): `Engine` checks that when a request arrives. What comes back is in `deltas.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llmlab.errors import ConfigError, RequestError
from llmlab.serve.grammar.spec import GrammarSpec

Scheme = Literal["stored", "int8", "int8-dynamic", "int4"]

MAX_TOP_LOGPROBS = 20
"""Most alternatives a position can be asked for (the OpenAI API's own limit)."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How one request is sampled and when it ends.

    Names and ranges are the OpenAI API's; `top_k`, `min_p`, `repetition_penalty`, `ignore_eos`,
    `min_tokens`, `stop_token_ids`, `priority` and `cache_salt` are vLLM's additions to it.

    Raises:
        RequestError: a value is out of its range, NaN or infinite; `.param` names the field.
    """

    max_tokens: int | None = None
    """Most tokens to generate; None goes on until the context is full, 0 only reads the prompt."""
    temperature: float = 1.0
    """Divides the logits, 0 to 2; 0 is greedy."""
    top_p: float = 1.0
    """Keep the fewest most likely tokens whose probability reaches this, above 0, at most 1."""
    top_k: int = 0
    """Keep this many most likely tokens; 0 keeps all."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the likeliest one, 0 to 1."""
    seed: int | None = None
    """Makes the request reproducible whatever else is in the batch; None takes a fresh seed."""
    stop: tuple[str, ...] = ()
    """Strings that end the text; they are never part of it."""
    stop_token_ids: tuple[int, ...] = ()
    """Token ids that end the request, beside the tokenizer's own."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of every token already generated, -2 to 2."""
    frequency_penalty: float = 0.0
    """Subtracted once per time a token was already generated, -2 to 2."""
    repetition_penalty: float = 1.0
    """Divides positive, multiplies negative logits of tokens in prompt or output, above 0."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logit of a token id, -100 to 100."""
    logprobs: int | None = None
    """Alternatives to report beside each generated token's log-probability, 0 to 20; None: none."""
    prompt_logprobs: int | None = None
    """The same for each token of the prompt."""
    ignore_eos: bool = False
    """Go on past the tokenizer's stop tokens."""
    min_tokens: int = 0
    """Tokens to generate before any stop token or stop string counts."""
    priority: int = 0
    """Lower is served earlier, and gives its memory up later."""
    cache_salt: str | None = None
    """What this prompt leaves in the prefix cache is found only by requests with the same salt."""
    grammar: GrammarSpec | None = None
    """The structure the text is to have: a JSON schema, a regular expression, choices, EBNF."""
    pooling: Literal["mean", "last"] | None = None
    """With `max_tokens=0`, give the prompt's states after the final norm: their mean or the last
    one, of length 1."""

    def __post_init__(self) -> None:
        _real(self, "temperature", 0, 2)
        _real(self, "top_p", 0, 1, above=True)
        _real(self, "min_p", 0, 1)
        _real(self, "presence_penalty", -2, 2)
        _real(self, "frequency_penalty", -2, 2)
        _real(self, "repetition_penalty", 0, math.inf, above=True)
        _whole(self, "max_tokens", 0, optional=True)
        _whole(self, "top_k", 0)
        _whole(self, "min_tokens", 0)
        _whole(self, "priority", -(2**31), 2**31 - 1)
        _whole(self, "seed", -(2**63), 2**63 - 1, optional=True)
        _whole(self, "logprobs", 0, MAX_TOP_LOGPROBS, optional=True)
        _whole(self, "prompt_logprobs", 0, MAX_TOP_LOGPROBS, optional=True)
        self._check_stops()
        self._check_bias()
        self._check_pooling()
        salt = self.cache_salt
        if salt is not None and (not isinstance(salt, str) or not salt):
            raise RequestError(
                f"cache_salt={salt!r} is not a non-empty string; leave it out", param="cache_salt"
            )

    def _check_stops(self) -> None:
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise RequestError(
                    f"stop={text!r} is not a non-empty string; leave it out", param="stop"
                )
        for token_id in self.stop_token_ids:
            if not _is_whole(token_id) or token_id < 0:
                raise RequestError(
                    f"stop_token_ids has {token_id!r}; use token ids from 0 up",
                    param="stop_token_ids",
                )
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens={self.min_tokens} is above max_tokens={self.max_tokens}; lower it",
                param="min_tokens",
            )

    def _check_pooling(self) -> None:
        if self.pooling not in (None, "mean", "last"):
            raise RequestError(
                f"pooling={self.pooling!r} is unknown; use mean or last", param="pooling"
            )
        if self.pooling is not None and self.max_tokens != 0:
            raise RequestError(
                f"pooling={self.pooling} with max_tokens={self.max_tokens}; an embedding generates "
                "nothing: use max_tokens=0",
                param="pooling",
            )

    def _check_bias(self) -> None:
        for token_id, bias in self.logit_bias.items():
            if not _is_whole(token_id) or token_id < 0:
                raise RequestError(
                    f"logit_bias has the key {token_id!r}; use token ids from 0 up",
                    param="logit_bias",
                )
            if not _is_real(bias) or not -100 <= bias <= 100:
                raise RequestError(
                    f"logit_bias of token {token_id} is {bias!r}; use a number from -100 to 100",
                    param="logit_bias",
                )


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What an engine is started with."""

    model: Path
    """Model folder (config.json, model.safetensors, tokenizer.json)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of weights and cache; auto takes what this machine multiplies faster."""
    device: str = "cpu"
    """Where the model runs: cpu, cuda, or auto for a GPU where there is one."""
    max_model_len: int | None = None
    """Most tokens of prompt and answer together; None takes the model's own limit."""
    page_len: int = 16
    """Tokens per page of the key/value cache."""
    num_pages: int | None = None
    """Pages in the cache; None takes as many as fit `kv_memory_mb`."""
    kv_memory_mb: int = 1024
    """Memory of the key/value cache in MB (1e6 bytes), of all processes together; used when
    `num_pages` is None."""
    max_batch_tokens: int = 512
    """Most tokens computed in one step, prompts and decodes together."""
    max_running: int = 32
    """Most requests computed side by side."""
    max_waiting: int = 256
    """Most requests that wait for their turn; one more is refused with status 429."""
    quantize: Scheme = "stored"
    """How weights are kept on a CPU: as they are stored, or rounded when the engine starts."""
    kv_dtype: Literal["auto", "int8"] = "auto"
    """How keys and values are kept: as the model's numbers, or rounded to int8."""
    speculate: Literal["none", "ngram", "draft"] = "none"
    """Guess tokens and check several in one step, as long as it pays: from the text so far, or by
    a draft model."""
    draft_model: Path | None = None
    """Folder of a smaller model with the same tokenizer, for `speculate=draft`."""
    draft_len: int = 8
    """Most tokens guessed at a time."""
    adapt_drafts: bool = True
    """Guess fewer tokens, or none, where that is faster; False guesses as many as it can."""
    prefix_cache: bool = True
    """Keep what was computed until its memory is needed, for prompts that begin the same."""
    itl_ratio: float | None = 1.75
    """While streams run, a step reads no more of prompts than makes it take so many times what it
    would take without, above 1; None reads as much as fits `max_batch_tokens`."""
    tensor_parallel: int = 1
    """Processes, on CPUs or a GPU each, that compute the model together, a share each."""
    adapters: Mapping[str, Path] = field(default_factory=dict)
    """LoRA adapters to load at the start: folders in PEFT's format by the name requests use."""
    max_loras: int = 0
    """Most adapters loaded at a time; at least as many as `adapters` has."""
    max_lora_rank: int = 64
    """Largest rank of an adapter."""
    lora_memory_mb: int = 512
    """Most memory of adapters in MB (1e6 bytes)."""

    def __post_init__(self) -> None:
        for name in (
            "page_len",
            "kv_memory_mb",
            "max_running",
            "max_waiting",
            "draft_len",
            "tensor_parallel",
            "max_lora_rank",
            "lora_memory_mb",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("max_model_len", "num_pages"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1, or left out")
        if self.itl_ratio is not None and not 1 < self.itl_ratio < math.inf:
            raise ConfigError(
                f"itl_ratio={self.itl_ratio} must be above 1: a step that also reads a prompt "
                "takes longer than one that does not"
            )
        if (self.speculate == "draft") != (self.draft_model is not None):
            raise ConfigError(
                f"speculate={self.speculate} with draft_model={self.draft_model}; a draft model "
                "needs speculate=draft, and the other way round"
            )
        if self.max_batch_tokens <= self.max_running:
            raise ConfigError(
                f"max_batch_tokens={self.max_batch_tokens} must be above "
                f"max_running={self.max_running}: every running request decodes one token a step "
                "and a prompt needs room beside them"
            )
        if self.max_loras < 0:
            raise ConfigError(f"max_loras={self.max_loras} must be at least 0")
        if self.tensor_parallel > 1:
            self._check_processes()

    def _check_processes(self) -> None:
        """Refuse what runs in one process only."""
        if self.draft_model is not None:
            raise ConfigError(
                f"draft_model={self.draft_model} with tensor_parallel={self.tensor_parallel}; a "
                "draft model runs in one process: use speculate=ngram, or one process"
            )
        if self.num_lora_slots:
            raise ConfigError(
                f"{self.num_lora_slots} adapters with tensor_parallel={self.tensor_parallel}; "
                "adapters run in one process: use tensor_parallel=1, or merge one into the model "
                "(llmlab merge) and serve that"
            )

    @property
    def num_lora_slots(self) -> int:
        """Adapters there is room for; without any, nothing is spent on them."""
        return max(self.max_loras, len(self.adapters))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    return (_is_whole(value) or isinstance(value, float)) and math.isfinite(value)


def _real(
    params: SamplingParams, name: str, low: float, high: float, *, above: bool = False
) -> None:
    value = getattr(params, name)
    if _is_real(value) and (low < value if above else low <= value) and value <= high:
        return
    span = f"above {low}" if above else f"from {low}"
    upper = "" if math.isinf(high) else f" to {high}" if not above else f", at most {high}"
    raise RequestError(f"{name}={value!r} is not usable; use a number {span}{upper}", param=name)


def _whole(
    params: SamplingParams, name: str, low: int, high: int | None = None, *, optional: bool = False
) -> None:
    value = getattr(params, name)
    if optional and value is None:
        return
    if _is_whole(value) and low <= value and (high is None or value <= high):
        return
    upper = "" if high is None else f" to {high}"
    raise RequestError(
        f"{name}={value!r} is not usable; use a whole number from {low}{upper}", param=name
    )
