"""Texts that tokenizers get wrong, and small real tokenizers to try them on."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from transformers import AutoTokenizer

from llmlab.data.named import find_named
from llmlab.errors import DataError
from llmlab.tokenizers import Tokenizer
from llmlab.tokenizers.pipeline import Pipeline

SPLITS = ("gpt2", "llama3", "qwen2", "smollm")

TORTURE = (
    "",
    " ",
    "a",
    "Hello, world! It's we'll THEY'RE I'd can't 'S 'LL don''t 'tis",
    "def add(first, second):\n    return first + second\n\n\n\tx = 0x1F\n",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🙂🙂🙂 5️⃣",
    "e\u0301 é a\u0300\u0301\u0302 Å Å ﬁ ﬆ \u0344 \u1100\u1161\u11a8 각",
    "שלום \u200fعالم\u200e ١٢٣ ٤٥٦",
    "汉字漢字かなカナ한글 12三四 ㊿ ½ Ⅷ ²",
    "\x00 nul \x01\x02\x1b[0m \x7f \x1c\x1d\x1e\x1f \x85 \u2028\u2029",
    "\ufffd \ufffd\ufffd bytes lost",
    "zero\u200bwidth\u200cnon\u200djoiner\ufeff\u2060",
    "private \ue000\uf8ff \U000f0000 \U0010fffd non-characters \ufdd0 \uffff",
    " " * 300 + "x" + " " * 7,
    "\n" * 50 + " \n \n\n  y\n",
    "1" * 100 + " 1234567 3.14159 1,000,000",
    "mixed\r\nline\nends\r\rhere \r\n\r\n  \r z",
    "\u00a0no-break\u3000ideographic\u2003em \u202f\u205f",
    "<|endoftext|> <|im_start|>user\nhi<|im_end|><|reserved_3|><|pad|><|im_end|",
    "'ſ 'K ŉ İ ı ẞ ß Ǆ ǅ",
    "!!!???...---===###$$$%%%^^^&&&***((()))",
    "a" * 500 + "\t" * 30 + "é" * 70,
)

CORPUS = (
    *TORTURE,
    "The cat sat on the mat, and the dog sat on the log; it's the cat's mat, we'll see. " * 3,
    "def add(first, second):\n    return first + second\n\n\nclass Cat:\n    pass\n" * 3,
    "Naïve café: 12,345 résumés – 汉字 and emoji 🙂, שלום, 각각. " * 3,
)

TRICKY = (
    *(" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\x1c", "\x85", "\u2028"),
    *("'", "'s", "'S", "'ſ", "'ll", "'LL", "'l", "'re", "'vE", "'d", "'M", "'K", "s", "S"),
    *("a", "A", "Ab", "bA", "É", "é", "ß", "ǅ", "ʰ", "中", "あ", "\u0301", "\u0300", "\u0903"),
    *("1", "23", "4567", "٣", "Ⅷ", "½", "\U0001d7d8", "\U00010400", "\U00010428"),
    *("/", "//", "\n/", "!", "-", "_", "…", "🙂", "\u200d", "\ufffd", "\x00"),
)
"""What the rules of splits look at, to be strung together."""


@cache
def trained(split: str = "qwen2", vocab_size: int = 450) -> Tokenizer:
    """A tokenizer trained on the corpus above."""
    return Tokenizer.train(CORPUS, vocab_size=vocab_size, split=split)


def reference(tokenizer: Tokenizer, folder: Path) -> tokenizers.Tokenizer:
    """The same tokenizer, saved and opened by Hugging Face `tokenizers`."""
    tokenizer.save(folder)
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def auto_tokenizer(folder: Path) -> Any:
    """The tokenizer that `transformers` makes of a folder."""
    return AutoTokenizer.from_pretrained(folder)


def shakespeare() -> str:
    """Tiny Shakespeare (1.1 MB), or skip the test."""
    try:
        path = find_named("tinyshakespeare")
    except (DataError, OSError):
        pytest.skip("tinyshakespeare lies neither in LLMLAB_DATA nor in the cache")
    return path.read_text(encoding="utf-8")


def pipeline_of(tokenizer: Tokenizer) -> Any:
    """The pipeline of a tokenizer of our own, whatever its model."""
    assert isinstance(tokenizer.pipeline, Pipeline)
    return tokenizer.pipeline
