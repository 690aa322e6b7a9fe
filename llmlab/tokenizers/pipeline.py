"""What decides the ids of a text: normalisers, cut, model, added tokens, decoder.

A text is brought into its normal form, cut into pre-tokens, and each pre-token becomes ids by the
model; added tokens are found before all that. Not here: how it runs (encoder.py), how it is
spelled in tokenizer.json (files/tokenizer_json.py), what the tokens are used for (tokenizer.py),
chat templates (chat.py).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from llmlab.tokenizers.added_tokens import AddedToken
from llmlab.tokenizers.cuts import Cut
from llmlab.tokenizers.decoders import Decoder
from llmlab.tokenizers.models.bpe import ByteLevelBPE
from llmlab.tokenizers.models.sentencepiece_bpe import SentencePieceBPE
from llmlab.tokenizers.models.unigram import Unigram
from llmlab.tokenizers.models.word_level import WordLevel
from llmlab.tokenizers.models.wordpiece import WordPiece
from llmlab.tokenizers.normalizers import Normalizer, normalizer_component
from llmlab.tokenizers.splits import Split

Model = ByteLevelBPE | SentencePieceBPE | WordPiece | Unigram | WordLevel


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """The parts, in the order in which a text meets them."""

    added_tokens: tuple[AddedToken, ...] = ()
    """Tokens matched before the text is cut, by id."""

    normalizers: tuple[Normalizer, ...] = ()
    """Steps that bring the text into its normal form; none leaves it alone."""

    split: Split | Cut
    """How text is cut before the model."""

    model: Model
    """What turns a pre-token into ids."""

    bos_tokens: tuple[str, ...] = ()
    """Tokens every prompt starts with."""

    eos_tokens: tuple[str, ...] = ()
    """Tokens that follow a text where one is asked for (BERT's `[SEP]`)."""

    decoder: Decoder
    """What the tokens spell."""

    @property
    def vocab(self) -> Mapping[str, int]:
        """Token of the model, as it is spelled in files, to id."""
        return self.model.vocab

    @property
    def fingerprint(self) -> str:
        """SHA-256 in hex of everything that decides the ids."""
        content = {
            "model": _in_order(self.model.component),
            "split": self.split.component,
            "added_tokens": [asdict(token) for token in self.added_tokens],
            "normalizer": normalizer_component(self.normalizers),
        }
        text = json.dumps(content, ensure_ascii=True, separators=(",", ":"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _in_order(model: dict[str, Any]) -> dict[str, Any]:
    """Return a model entry whose vocabulary is a list by id, which sorting keys leaves alone."""
    if isinstance(vocab := model["vocab"], dict):
        return {**model, "vocab": list(vocab.items())}
    return model
