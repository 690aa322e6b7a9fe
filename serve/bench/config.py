"""What `llmlab bench serve` takes; no torch, no HTTP.

Not here: what the mixes send (conversations.py), what is measured (measures.py).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmlab.errors import ConfigError

Mix = Literal["uniform", "shared-prefix", "long-prefill", "multi-turn"]


@dataclass(frozen=True, slots=True)
class Level:
    """How hard the servers are pressed: one of the two is set."""

    concurrency: int | None = None
    """Requests under way at any moment."""
    rate: float | None = None
    """Requests per second, at random moments (Poisson), however many are under way."""

    def __str__(self) -> str:
        return f"{self.concurrency} at once" if self.rate is None else f"{self.rate:g} per s"


@dataclass(frozen=True, kw_only=True)
class BenchServeConfig:
    """Measure servers that speak the OpenAI API: throughput and latencies under load."""

    base_url: tuple[str, ...] = ("http://127.0.0.1:8000",)
    """URLs of the servers, with or without /v1; several take turns."""
    label: tuple[str, ...] = ()
    """Their names in tables and plots; the URLs when left out."""
    model: str | None = None
    """Model name for requests; the first one that each server lists when left out."""
    api_key_file: Path | None = None
    """File whose first line is the API key; the variable OPENAI_API_KEY when left out."""
    mix: Mix = "uniform"
    """uniform: prompts with nothing in common; shared-prefix: prompts with the same beginning;
    multi-turn: conversations, each turn behind all before; long-prefill: what a long prompt does
    to the tokens of running streams."""
    concurrency: tuple[int, ...] = ()
    """Numbers of requests under way at once, one after the other; 1 8 32 without any --rate."""
    rate: tuple[float, ...] = ()
    """Requests per second that arrive at random moments (Poisson)."""
    num_requests: int | None = None
    """Requests of a level; 4 times the concurrency or 30 s of the rate, at least 16, when left
    out. For long-prefill: long prompts, 4 when left out."""
    seconds: float | None = None
    """Start requests for so long instead; those under way then are waited for."""
    warmup: int = 4
    """Requests before each level that are not measured."""
    rounds: int = 1
    """Times that everything is run, the servers in turn."""
    input_len: int = 128
    """Tokens of a prompt; of a user's message in multi-turn."""
    output_len: int | None = None
    """Tokens of an answer, exactly so many where the server knows ignore_eos; 64 when left out,
    1024 for the streams of long-prefill, which are cut when the long prompts are done."""
    spread: float = 0.0
    """Lengths differ by up to this share of themselves, evenly; 0 to 1."""
    shared_len: int = 512
    """Tokens of the shared beginning, in front of input_len others (shared-prefix)."""
    long_len: int = 1500
    """Tokens of the long prompt (long-prefill)."""
    turns: int = 4
    """Turns of a conversation (multi-turn)."""
    tokenizer: Path | None = None
    """Tokenizer or model folder: prompts are then random token ids, exactly so many; text of
    common English words, about so many, when left out."""
    chat: bool = False
    """Ask /v1/chat/completions in every mix, not only in multi-turn."""
    temperature: float = 0.0
    """Divides the logits; 0 is greedy."""
    seed: int = 0
    """Decides prompts, lengths and arrivals."""
    timeout_s: float = 300.0
    """Seconds after which a request counts as failed."""
    out: Path | None = None
    """Folder for results.json and a plot; nothing is written when left out."""
    overwrite: bool = False
    """Replace an existing folder."""

    def __post_init__(self) -> None:
        for name, low in _LOWEST.items():
            if (value := getattr(self, name)) is not None and value < low:
                raise ConfigError(f"{name}={value} must be at least {low}")
        for name in ("concurrency", "rate"):
            if any(value <= 0 for value in getattr(self, name)):
                raise ConfigError(f"{name}={getattr(self, name)} must be above 0")
        for name in ("seconds", "timeout_s"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ConfigError(f"{name}={value} must be above 0")
        if not 0 <= self.spread <= 1:
            raise ConfigError(f"spread={self.spread} must be from 0 to 1")
        self._check_together()

    def _check_together(self) -> None:
        if not self.base_url:
            raise ConfigError("base_url names no server; give at least one")
        if self.label and len(self.label) != len(self.base_url):
            raise ConfigError(
                f"{len(self.label)} labels for {len(self.base_url)} URLs; give one for each"
            )
        if len(set(self.labels)) != len(self.labels):
            raise ConfigError(f"label={self.labels} has a name twice; give each server its own")
        if self.num_requests is not None and self.seconds is not None:
            raise ConfigError("num_requests and seconds both say when to stop; give one of them")
        if self.mix == "long-prefill" and (self.rate or self.seconds is not None):
            raise ConfigError(
                "mix=long-prefill takes streams and long prompts: --concurrency and "
                "--num-requests, not --rate or --seconds"
            )
        if self.tokenizer is not None and self.asks_chat:
            raise ConfigError(
                "tokenizer makes prompts of token ids, and chats are text; leave out --tokenizer "
                "or ask completions"
            )

    @property
    def labels(self) -> tuple[str, ...]:
        """The servers' names."""
        return self.label or self.base_url

    @property
    def asks_chat(self) -> bool:
        """Whether requests are chats."""
        return self.chat or self.mix == "multi-turn"

    @property
    def levels(self) -> tuple[Level, ...]:
        """The loads, in the order in which they are tried."""
        concurrency = self.concurrency
        if not concurrency and not self.rate:
            concurrency = (8,) if self.mix == "long-prefill" else (1, 8, 32)
        return (
            *(Level(concurrency=number) for number in concurrency),
            *(Level(rate=rate) for rate in self.rate),
        )

    @property
    def answer_len(self) -> int:
        """Tokens of an answer."""
        return self.output_len or (1024 if self.mix == "long-prefill" else 64)

    def num_requests_at(self, level: Level) -> int:
        """Return how many requests a level has, where time does not end it."""
        if self.num_requests is not None:
            return self.num_requests
        if self.mix == "long-prefill":
            return 4
        usual = 4 * level.concurrency if level.concurrency else round(30 * (level.rate or 0))
        return max(16, usual)


_LOWEST = {
    "num_requests": 1, "warmup": 0, "rounds": 1, "input_len": 1, "output_len": 1, "shared_len": 1,
    "long_len": 1, "turns": 1, "temperature": 0, "seed": 0,
}  # fmt: skip
