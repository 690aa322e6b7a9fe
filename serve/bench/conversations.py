"""What the mixes ask: prompts of chosen lengths, drawn by a seed.

Two servers get the same prompts in the same round, and no prompt comes twice, so that a prefix
cache finds what a mix means it to find and nothing else. Not here: when they are sent (load.py).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from llmlab.serve.bench.client import Question
from llmlab.serve.bench.config import BenchServeConfig
from llmlab.tokenizers import Tokenizer

_WORDS = (
    "the of and to in is that it was for on are with as be this have from or had by but what some "
    "we can out other were all there when up use your how said each she which do their time if "
    "will way about many then them write would like so these her long make thing see him two has "
    "look more day could go come did number sound no most people my over know water than call "
    "first who may down side been now find any new work part take get place made live where after "
    "back little only round man year came show every good me give our under name very through "
    "just form sentence great think say help low line turn cause much mean before move right boy "
    "old too same tell does set three want air well also play small end put home read hand port "
    "large spell add even land here must big high such follow act why ask men change went light"
)
"""Each is one token of most vocabularies, with the space before it."""


class Conversations:
    """An endless supply of conversations; all but those of multi-turn have one turn.

    Args:
        load: number of the load; as the next two, decides with the seed what is drawn.
        number: of the round.
        purpose: measuring or warming up, which have only the shared beginning in common.
        token_ids: ids to draw prompts from; None makes them of words.
    """

    def __init__(
        self,
        config: BenchServeConfig,
        *,
        load: int = 0,
        number: int = 0,
        purpose: int = 0,
        token_ids: np.ndarray | None = None,
    ) -> None:
        self._config = config
        self._pieces = np.array(_WORDS.split()) if token_ids is None else token_ids
        self._rng = np.random.default_rng([config.seed, load, number])
        self._shared = self._drawn(config.shared_len if config.mix == "shared-prefix" else 0)
        self._rng = np.random.default_rng([config.seed, load, number, 1 + purpose])

    def __iter__(self) -> Iterator[list[Question]]:
        while True:
            yield [self._turn() for _ in range(self.turns)]

    @property
    def turns(self) -> int:
        """Questions of a conversation."""
        return self._config.turns if self._config.mix == "multi-turn" else 1

    def question(self, *, input_len: int, num_tokens: int) -> Question:
        """Return a question of given lengths."""
        return Question(prompt=self._sent(self._drawn(input_len)), num_tokens=num_tokens)

    def _turn(self) -> Question:
        prompt = self._shared + self._drawn(self._length(self._config.input_len))
        return Question(prompt=self._sent(prompt), num_tokens=self._length(self._config.answer_len))

    def _length(self, length: int) -> int:
        spread = round(length * self._config.spread)
        return max(1, int(self._rng.integers(length - spread, length + spread + 1)))

    def _drawn(self, length: int) -> list[Any]:
        """Return words or token ids."""
        return self._rng.choice(self._pieces, length).tolist()

    def _sent(self, prompt: list[Any]) -> str | list[int] | list[dict[str, str]]:
        if self._pieces.dtype.kind == "i":
            return prompt
        text = " ".join(prompt)
        return [{"role": "user", "content": text}] if self._config.asks_chat else text


def plain_token_ids(tokenizer: Tokenizer) -> np.ndarray:
    """Return every token id but those of special tokens."""
    special = list(tokenizer.special_tokens.values())
    return np.setdiff1d(np.arange(tokenizer.vocab_size), special)
