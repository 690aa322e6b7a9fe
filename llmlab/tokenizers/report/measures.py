"""What a tokenizer does to text, counted one document at a time.

Memory is a count for each id and the document at hand. Not here: what the vocabulary looks like
(vocabulary.py), tables and pages.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmlab.tokenizers import Tokenizer
from llmlab.tokenizers.report.words import Spans, in_bytes, tokens_touching, word_spans

_CONTEXT_CHARS = 24


@dataclass(frozen=True, kw_only=True)
class TextMeasures:
    """One tokenizer on one body of text."""

    documents: int
    bytes: int
    """UTF-8 bytes of the text."""

    chars: int
    words: int
    """Runs of letters (words.py says which)."""

    tokens: int
    bytes_per_token: float
    chars_per_token: float
    tokens_per_word: float | None
    """Tokens that touch a word, averaged; None without words."""

    one_token_words: float | None
    """Share of the words that lie within one token."""

    unknown_tokens: int
    """Tokens that stand for text the vocabulary cannot spell."""

    failed_documents: int
    """Documents with `decode(encode(text)) != text`."""

    first_failure: str | None
    """Where the first of them differs: what was written, and what came back."""

    @property
    def unknown_share(self) -> float:
        """Share of the tokens that are unknown."""
        return self.unknown_tokens / max(self.tokens, 1)


@dataclass(frozen=True)
class CutText:
    """A text with its words, found once for all tokenizers."""

    text: str
    num_bytes: int
    words: Spans
    """(W, 2), in characters."""

    word_bytes: Spans
    """(W, 2), in bytes of UTF-8."""

    @classmethod
    def of(cls, text: str) -> "CutText":
        """Find the words of a text."""
        data, words = text.encode(), word_spans(text)
        return cls(text, len(data), words, in_bytes(words, text, data))


class Tally:
    """Running counts of one tokenizer on one body of text.

    Args:
        tokenizer: the tokenizer.
        byte_lens: (V,) bytes each id stands for.
    """

    def __init__(self, tokenizer: Tokenizer, byte_lens: NDArray[np.int64]) -> None:
        self._tokenizer, self._byte_lens = tokenizer, byte_lens
        self.counts = np.zeros(len(byte_lens), np.int64)
        """(V,) how often each id came up."""
        self._documents = self._bytes = self._chars = 0
        self._words = self._word_tokens = self._one_token_words = 0
        self._failed = 0
        self._first_failure: str | None = None

    def add(self, texts: Sequence[CutText]) -> None:
        """Encode texts, decode them again, and count."""
        encoded = self._tokenizer.encode_batch_to_arrays([cut.text for cut in texts])
        for cut, ids in zip(texts, encoded, strict=True):
            self._documents += 1
            self._bytes += cut.num_bytes
            self._chars += len(cut.text)
            self.counts += np.bincount(ids, minlength=len(self.counts))
            is_exact = self._check_round_trip(cut.text, ids)
            touching = self._tokens_of_words(cut, ids, is_exact=is_exact)
            self._words += len(touching)
            self._word_tokens += int(touching.sum())
            self._one_token_words += int((touching == 1).sum())

    def measures(self) -> TextMeasures:
        """Return what was counted so far."""
        tokens = int(self.counts.sum())
        unknown = self._tokenizer.unk_token_id
        return TextMeasures(
            documents=self._documents,
            bytes=self._bytes,
            chars=self._chars,
            words=self._words,
            tokens=tokens,
            bytes_per_token=self._bytes / max(tokens, 1),
            chars_per_token=self._chars / max(tokens, 1),
            tokens_per_word=self._word_tokens / self._words if self._words else None,
            one_token_words=self._one_token_words / self._words if self._words else None,
            unknown_tokens=0 if unknown is None else int(self.counts[unknown]),
            failed_documents=self._failed,
            first_failure=self._first_failure,
        )

    def _tokens_of_words(
        self, cut: CutText, ids: NDArray[np.uint32], *, is_exact: bool
    ) -> NDArray[np.int64]:
        lens = self._byte_lens[ids]  # (T,)
        if is_exact and lens.sum() == cut.num_bytes:
            ends = np.cumsum(lens)
            return tokens_touching(cut.word_bytes, ends - lens, ends)
        # Tokens that add, drop or change characters: their places come from the encoder.
        offsets = self._tokenizer.encode_with_offsets(cut.text).offsets  # (T, 2)
        return tokens_touching(cut.words, offsets[:, 0], offsets[:, 1])

    def _check_round_trip(self, text: str, ids: NDArray[np.uint32]) -> bool:
        back = self._tokenizer.decode(ids.tolist())
        if back != text:
            self._failed += 1
            self._first_failure = self._first_failure or _difference(text, back)
        return back == text


def byte_lens(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Return how many bytes each id stands for; (V,)."""
    lens = (len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size))
    return np.fromiter(lens, np.int64, tokenizer.vocab_size)


def _difference(text: str, back: str) -> str:
    pairs = enumerate(zip(text, back, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), min(len(text), len(back)))
    start = max(at - _CONTEXT_CHARS // 2, 0)
    written, returned = (ascii(t[start : start + _CONTEXT_CHARS]) for t in (text, back))
    return f"{written} came back as {returned}"
