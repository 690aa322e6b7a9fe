"""Where one sequence stands in its grammar: which tokens may come next. Torch-free.

Not here: what the bitmask does to logits (bitmask.py), how a grammar is compiled (compiler.py).
"""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from llmlab.errors import RequestError
from llmlab.serve.grammar.vocabulary import Vocabulary


class GrammarState:
    """A place in a grammar. One thread at a time may use it.

    Args:
        matcher: the library's own, which belongs to this state from now on.
        vocabulary: the token table it was built on.
        param: the request field to name in errors.
    """

    def __init__(self, matcher: Any, vocabulary: Vocabulary, *, param: str) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._param = param
        self._num_text = 0  # accepted tokens, a stop token left out
        self._ended = False  # whether a stop token was accepted
        self._scratch: NDArray[np.int32] | None = None
        if vocabulary.alias is not None:
            self._scratch = np.zeros(-(-len(vocabulary.tokens) // 32), np.int32)

    def mask_into(self, row: NDArray[np.int32]) -> None:
        """Write which tokens may come next.

        Where the grammar leaves no choice of text, one token is allowed: the one the tokenizer
        would take.

        Args:
            row: (ceil(V / 32),) int32, contiguous, on the CPU (the `numpy()` of a row of a torch
                bitmask). Bit i % 32 of word i // 32 is 1 when token i may come; bits past the
                vocabulary are 0.

        Raises:
            RequestError: the grammar has run into a limit of the library, or no token can follow;
                the sequence cannot go on.
        """
        words = (self._vocabulary.num_words,)
        if row.shape != words or row.dtype != np.int32 or not row.flags.c_contiguous:
            raise ValueError(
                f"row is {row.dtype} {row.shape}; it must be int32 {words} in one piece"
            )
        if self._ended:
            row[:] = 0
            return
        target = row if self._scratch is None else self._scratch
        self._matcher.unsafe_compute_mask_ptr(target.ctypes.data, target.nbytes)
        if self._matcher.is_error():
            raise self._failure()
        if self._scratch is not None:
            row[:] = self._without_aliases(self._scratch)
            if not row.any():
                raise self._failure("no token of the model spells what must come next")

    def allowed(self) -> NDArray[np.int32]:
        """Return a new row as `mask_into` writes it."""
        row = np.zeros(self._vocabulary.num_words, np.int32)
        self.mask_into(row)
        return row

    def accept(self, token_id: int) -> bool:
        """Go on by one token; False, and nothing changes, when the grammar does not allow it.

        It also takes other ways to spell text that the grammar forces than the one in the mask.

        Raises:
            RequestError: the grammar has run into a limit of the library; the sequence cannot go
                on.
        """
        if self._ended or not 0 <= token_id < self._vocabulary.size:
            return False
        if token_id in self._vocabulary.stop_ids:
            self._ended = self._matcher.is_accepting()
            return self._ended
        if self._vocabulary.alias is not None and self._num_text == 0:
            token_id = int(self._vocabulary.alias[token_id])
        taken = self._matcher.try_consume_tokens([token_id]) == 1
        if self._matcher.is_error():
            raise self._failure()
        self._num_text += taken
        return taken

    @property
    def is_finished(self) -> bool:
        """True when no text can follow: a stop token was accepted, or only one could be."""
        return self._ended or self._matcher.is_stopped()

    @property
    def num_accepted(self) -> int:
        """Tokens accepted and not taken back, a stop token included."""
        return self._num_text + self._ended

    def rollback(self, num_tokens: int) -> None:
        """Take back the last tokens, as if they had never been accepted."""
        if not 0 <= num_tokens <= self.num_accepted:
            raise ValueError(f"cannot take back {num_tokens} of {self.num_accepted} tokens")
        num_text = num_tokens - (self._ended and num_tokens > 0)
        if num_tokens > 0:
            self._ended = False
        if num_text and not self._matcher.rollback(num_text):
            raise self._failure()
        self._num_text -= num_text

    def fork(self) -> Self:
        """Return a state at the same place that goes its own way."""
        other = type(self)(self._matcher.deep_copy(), self._vocabulary, param=self._param)
        other._num_text, other._ended = self._num_text, self._ended
        return other

    def forced(self) -> list[int]:
        """Return the tokens that must come next, [] when there is a choice.

        Each is the only one in its mask, once those before it are accepted. There may be more to
        come; with tokens that have aliases there are never any.
        """
        return [] if self.is_finished else self._matcher.compute_ff_tokens()

    def _without_aliases(self, words: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return the words of the ids alone; the first token of a text is spelled by its alias."""
        size, alias = self._vocabulary.size, self._vocabulary.alias
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")
        own = bits[:size] if self._num_text or alias is None else bits[alias]
        packed = np.zeros(self._vocabulary.num_words * 32, np.uint8)
        packed[:size] = own
        return np.packbits(packed, bitorder="little").view(np.int32)

    def _failure(self, reason: str = "") -> RequestError:
        said = reason or self._matcher.get_error().replace("<non-verbose/>", "").strip()
        return RequestError(
            f"{self._param} cannot be followed beyond token {self._num_text}: {said[:200]}; "
            "make it simpler",
            param=self._param,
        )
