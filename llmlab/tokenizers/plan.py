"""What to learn: the settings of a training, checked, and the special tokens it reserves.

Not here: how it is learnt (learning.py, trainers/).
"""

from dataclasses import dataclass
from typing import Literal, get_args

from llmlab.errors import ConfigError

Algorithm = Literal["bpe", "unigram", "wordpiece", "char", "word"]

END_OF_TEXT, PAD = "<|endoftext|>", "<|pad|>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"

SPECIAL_TOKENS: tuple[str, ...] = (
    END_OF_TEXT,
    PAD,
    TURN_START,
    TURN_END,
    *(f"<|reserved_{number}|>" for number in range(12)),
)
"""The special tokens of a tokenizer trained here; the reserved ones are for finetuning."""

UNKNOWN = "[UNK]"
"""What the algorithms without a byte alphabet give for text they cannot spell."""

MAX_VOCAB_SIZE = 1_000_000


@dataclass(frozen=True, kw_only=True)
class LearningPlan:
    """The settings of a training; `Tokenizer.train` documents them."""

    vocab_size: int
    algorithm: Algorithm = "bpe"
    split: str = "qwen2"
    digits: int | None = None
    lowercase: bool = False
    min_frequency: int = 2
    limit_alphabet: int | None = None
    special_tokens: tuple[str, ...] = SPECIAL_TOKENS
    num_threads: int | None = None

    def __post_init__(self) -> None:
        algorithms = get_args(Algorithm)
        if self.algorithm not in algorithms:
            choices = ", ".join(map(repr, algorithms))
            raise ConfigError(f"algorithm={self.algorithm!r} is not known; choose from {choices}")
        if len(set(self.special_tokens)) < len(self.special_tokens) or "" in self.special_tokens:
            raise ConfigError(
                f"special_tokens={self.special_tokens} has an empty one or one twice; "
                "each must be different"
            )
        for name in ("min_frequency", "limit_alphabet", "num_threads"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name}={value} is below 1; leave it out for the default")
        for name, algorithm in (("digits", "bpe"), ("lowercase", "wordpiece")):
            if getattr(self, name) and self.algorithm != algorithm:
                raise ConfigError(
                    f"{name}={getattr(self, name)} is only for algorithm={algorithm!r}, not "
                    f"{self.algorithm!r}; leave it out"
                )
        if self.limit_alphabet is not None and self.algorithm == "bpe":
            raise ConfigError(
                f"limit_alphabet={self.limit_alphabet} is not for algorithm='bpe', whose alphabet "
                "is the 256 bytes; leave it out"
            )
        if not self.num_reserved <= self.vocab_size <= MAX_VOCAB_SIZE:
            raise ConfigError(
                f"vocab_size={self.vocab_size} is out of range: {self._reserved} need "
                f"at least {self.num_reserved}, and {MAX_VOCAB_SIZE} is the most"
            )

    @property
    def num_reserved(self) -> int:
        """Ids that are given out before anything is learnt: special tokens, bytes, `[UNK]`."""
        has_bytes = self.algorithm in ("bpe", "unigram")
        return len(self.special_tokens) + 256 * has_bytes + (self.algorithm != "bpe")

    @property
    def _reserved(self) -> str:
        has_bytes = self.algorithm in ("bpe", "unigram")
        return f"{'256 bytes and ' if has_bytes else ''}{len(self.special_tokens)} special tokens"

    @property
    def roles(self) -> dict[str, str]:
        """Role to special token, as tokenizer_config.json names roles."""
        roles = {"eos_token": END_OF_TEXT, "pad_token": PAD}
        known = {role: token for role, token in roles.items() if token in self.special_tokens}
        return known if self.algorithm == "bpe" else {**known, "unk_token": UNKNOWN}
