"""What may come next in the sequences that decode: who guesses it, and how much of it.

Not here: whether guessing pays (speculation.py), the draft model itself (draft_model.py), the check
(next_tokens.py).
"""

from collections import abc

from llmlab.serve.draft_model import DraftModel
from llmlab.serve.params import EngineConfig
from llmlab.serve.request import Request
from llmlab.serve.sequence import Sequence
from llmlab.serve.speculation import StepCost, draft_lens


class Drafting:
    """Gives sequences their drafts, before each step.

    Args:
        config: how long a draft may be, and whether it adapts to what pays.
        draft_model: what guesses; None guesses from the text so far.
        room: how much of a draft of so many tokens a sequence has pages for; it gets those pages.
    """

    def __init__(
        self,
        config: EngineConfig,
        draft_model: DraftModel | None,
        room: abc.Callable[[Sequence, int], int],
    ) -> None:
        self._config = config
        self._draft_model = draft_model
        self._room = room
        self.cost = StepCost()
        """Of steps that only decode."""

    def draft(self, requests: abc.Sequence[Request]) -> None:
        """Guess what comes next in requests that decode, as far as guessing pays."""
        seqs = [request.seq for request in requests]
        most = [min(self._config.draft_len, seq.max_len - len(seq.token_ids) - 1) for seq in seqs]
        guesses: list[list[int]] = []
        if self._draft_model is None:
            pairs = zip(requests, most, strict=True)
            guesses = [
                request.guesses.guess(request.seq.token_ids, count) for request, count in pairs
            ]
            most = [len(guess) for guess in guesses]
        lens = most
        if self._config.adapt_drafts:
            guess_s = 0.0 if self._draft_model is None else self._draft_model.token_s
            chances = [request.chance.value for request in requests]
            lens = draft_lens(chances, most, len(seqs), self.cost, guess_s=guess_s)
        if self._draft_model is not None:
            lens = [self._room(seq, count) for seq, count in zip(seqs, lens, strict=True)]
            guesses = self._draft_model.guess(seqs, lens)
        for seq, guess, length in zip(seqs, guesses, lens, strict=True):
            seq.draft = tuple(guess[:length])
