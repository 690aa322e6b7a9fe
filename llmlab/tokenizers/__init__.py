"""Text to token ids and back: byte-level BPE, special tokens, chat templates.

`Tokenizer` is the whole surface; importing this package loads neither numpy nor regex.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmlab.tokenizers.stream import StreamDecoder
    from llmlab.tokenizers.tokenizer import Tokenizer

_HOMES = {
    "StreamDecoder": "llmlab.tokenizers.stream",
    "Tokenizer": "llmlab.tokenizers.tokenizer",
}

__all__ = ["StreamDecoder", "Tokenizer"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'llmlab.tokenizers' has no attribute {name!r}")
