"""The fields of `llmlab generate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmlab.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Continue a prompt with a model folder, printing the text as it comes."""

    model: Path
    """Model folder, as `llmlab pretrain` or transformers writes it."""
    prompt: str
    """Text to continue, or with --chat the user's message."""
    chat: bool = False
    """Put the prompt through the tokenizer's chat template."""
    system: str | None = None
    """With --chat: the system message."""
    max_tokens: int = 256
    """Most tokens to generate."""
    temperature: float = 0.8
    """Divides the logits; 0 takes the most likely token each time."""
    top_k: int = 0
    """Sample among the k most likely tokens; 0 is off."""
    top_p: float = 1.0
    """Sample among the most likely tokens that together reach this probability; 1 is off."""
    min_p: float = 0.0
    """Drop tokens less than this fraction as likely as the most likely one; 0 is off."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens that already occurred less likely; 1 is off."""
    seed: int = 0
    """The same seed gives the same text on the same machine."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the weights; auto takes bfloat16 where it multiplies faster."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run; auto takes a GPU where there is one."""

    def __post_init__(self) -> None:
        checks = {
            "max_tokens": (self.max_tokens >= 1, "at least 1"),
            "temperature": (self.temperature >= 0, "0 or more"),
            "top_k": (self.top_k >= 0, "0 (off) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p < 1, "at least 0 and below 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
        }
        for name, (is_good, allowed) in checks.items():
            if not is_good:
                raise ConfigError(f"{name}={getattr(self, name)} must be {allowed}")
        if self.system is not None and not self.chat:
            raise ConfigError(f"system={self.system!r} needs --chat; add --chat or leave it out")
