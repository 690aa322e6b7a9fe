"""What decides the ids of a text: vocabulary, merges, split, normaliser, added tokens.

Not here: how it is spelled in tokenizer.json (tokenizer_json.py), what the tokens are used for
(tokenizer.py), chat templates (chat.py).
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

from llmlab.tokenizers.added_tokens import AddedToken
from llmlab.tokenizers.splits import Split


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A byte-level BPE pipeline."""

    vocab: dict[str, int]
    """Token, spelled in the byte alphabet, to id."""

    merges: tuple[tuple[str, str], ...]
    """Pairs of tokens, the first one applied first."""

    split: Split
    """How text is cut before merging."""

    added_tokens: tuple[AddedToken, ...] = ()
    """Tokens matched before the text is cut, by id."""

    normalizer: Literal["NFC"] | None = None
    """Unicode form the text is brought into; None leaves it alone."""

    ignore_merges: bool = False
    """Whether a pre-token that is a token becomes it at once, whatever the merges say."""

    unknown_token: str | None = None
    """What a byte without a token becomes; None drops it."""

    bos_tokens: tuple[str, ...] = ()
    """Tokens every prompt starts with."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 in hex of everything that decides the ids."""
        content = {
            "vocab": sorted(self.vocab.items(), key=lambda item: item[1]),
            "merges": self.merges,
            "split": self.split.expression,
            "added_tokens": [asdict(token) for token in self.added_tokens],
            "normalizer": self.normalizer,
            "ignore_merges": self.ignore_merges,
            "unknown_token": self.unknown_token,
        }
        text = json.dumps(content, ensure_ascii=True, separators=(",", ":"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()
