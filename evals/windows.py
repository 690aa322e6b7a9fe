"""From texts to the token rows that are scored: the conventions, pure Python.

They are lm-evaluation-harness's, so that numbers can be compared with published ones:

* A continuation's tokens are what `encode(context + continuation)` has beyond
  `len(encode(context))` tokens. White space at the end of the context is scored with the
  continuation, because it would be tokenised with it.
* Special tokens spelled in a text are read as such, and nothing is added to a text but what the
  tokenizer puts in front of every prompt.
* An empty context is the prefix token: BOS, or end-of-text where the tokenizer has no BOS.
* A row too long for the model loses its beginning, never its continuation.
* A long text is cut into windows of `max_len` predicted tokens, each token predicted once. The
  first window starts with the prefix token, each further one with the last token of the one
  before; the last window is filled up with earlier tokens. So in the middle of a long text the
  first tokens of a window see little context: the loss is a little higher than with a window
  moved token by token, and `max_len` times cheaper to compute.

Source: github.com/EleutherAI/lm-evaluation-harness, version 0.4.13.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """Tokens to feed and, at the end of them, tokens to score.

    The last `len(target_ids)` positions of `input_ids` predict `target_ids`.
    """

    input_ids: list[int]
    """At most `max_len`, and at least as many as the targets."""
    target_ids: list[int]
    """The tokens scored, at least one."""


@dataclass(frozen=True, kw_only=True)
class Coding:
    """How a model's texts become rows."""

    encode: Callable[[str], list[int]]
    """Text to token ids, nothing added."""
    bos_ids: list[int]
    """What the tokenizer puts in front of every prompt."""
    prefix_id: int
    """Stands for an empty context, and in front of a whole text."""
    max_len: int
    """Most tokens the model can be fed."""

    def pair_row(self, context: str, continuation: str) -> Row | str:
        """Return the row that scores a continuation, or why there is none."""
        text = context.rstrip()
        continuation = context[len(text) :] + continuation
        context_ids = self.encode(text) if text else []
        target_ids = self.encode(text + continuation)[len(context_ids) :]
        if text:
            context_ids = [*self.bos_ids, *context_ids]
        else:
            context_ids = [self.prefix_id]
            # A continuation that begins with the prefix brings its own.
            target_ids = target_ids[1:] if target_ids[:1] == context_ids else target_ids
        if not target_ids:
            return f"continuation {continuation!r} adds no token to its context"
        if len(target_ids) > self.max_len:
            return f"continuation of {len(target_ids)} tokens does not fit {self.max_len}"
        return Row([*context_ids, *target_ids][-(self.max_len + 1) : -1], target_ids)

    def text_rows(self, text: str) -> list[Row]:
        """Cut a text into rows that together score each of its tokens once."""
        ids = self.encode(text)
        rows = []
        for start in range(0, len(ids), self.max_len):
            target_ids = ids[start : start + self.max_len]
            end = start + len(target_ids)
            # Fed up to the last but one token, reaching back as far as it may.
            fed = ids[end - self.max_len - 1 : end - 1] if start else ids[: end - 1]
            rows.append(Row(fed if start else [self.prefix_id, *fed], target_ids))
        return rows
