"""The engine: takes requests, runs steps, gives back deltas. Offline use is `Engine.generate`.

Not here: when a sequence runs (scheduler.py), tensors (runner.py), threads (async_engine.py).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from llmlab.model import ModelConfig
from llmlab.serve.deltas import Delta, EngineStats, Output
from llmlab.serve.params import EngineConfig, SamplingParams
from llmlab.tokenizers import Tokenizer


class Engine:
    """A model folder, ready to generate for many requests at once.

        with Engine(folder) as engine:
            for output in engine.generate(["Once upon"], SamplingParams(max_tokens=32)):
                ...

    Args:
        model: a model folder, or an `EngineConfig` that names one.
    """

    tokenizer: Tokenizer
    model_config: ModelConfig
    config: EngineConfig
    max_model_len: int
    """Most tokens of prompt and answer together."""

    def __init__(self, model: EngineConfig | Path | str) -> None:
        raise NotImplementedError

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
    ) -> Iterator[Output]:
        """Generate for all prompts together; outputs come in the order of the prompts.

        Args:
            prompts: texts (encoded with the tokenizer's `bos_ids` in front) or token ids as they
                are.
            params: one for all, or one for each prompt.

        Raises:
            RequestError: a prompt is empty or does not fit the context.
        """
        raise NotImplementedError

    def submit(self, prompt_ids: Sequence[int], params: SamplingParams) -> int:
        """Queue one request and return its number."""
        raise NotImplementedError

    def step(self) -> list[tuple[int, Delta]]:
        """Run one forward pass; return what it added, by request number."""
        raise NotImplementedError

    def abort(self, request: int) -> None:
        """Forget a request and free its pages."""
        raise NotImplementedError

    def stats(self) -> EngineStats:
        """Return the counters."""
        raise NotImplementedError
