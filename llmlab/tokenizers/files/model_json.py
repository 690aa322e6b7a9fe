"""The `model` entry of tokenizer.json: a vocabulary and the way it is applied."""

from typing import Any

from llmlab.errors import UnsupportedPart
from llmlab.tokenizers.models.unigram import Unigram
from llmlab.tokenizers.models.word_level import WordLevel
from llmlab.tokenizers.models.wordpiece import WordPiece
from llmlab.tokenizers.pipeline import ByteLevelBPE, Model

# Settings of a BPE model that only mean something outside byte-level BPE.
_UNUSED_BPE = {
    "dropout": (None, 0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "fuse_unk": (None, False),
    "byte_fallback": (None, False),
}


def model_component(model: Model) -> dict[str, Any]:
    """Return the `model` entry of a model."""
    match model:
        case ByteLevelBPE():
            return {
                "type": "BPE",
                "dropout": None,
                "unk_token": model.unknown_token,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": model.ignore_merges,
                "vocab": _by_id(model.vocab),
                "merges": [list(pair) for pair in model.merges],
            }
        case WordPiece():
            return {
                "type": "WordPiece",
                "unk_token": model.unknown_token,
                "continuing_subword_prefix": model.prefix,
                "max_input_chars_per_word": model.max_chars,
                "vocab": _by_id(model.vocab),
            }
        case Unigram():
            return {
                "type": "Unigram",
                "unk_id": model.unk_id,
                "vocab": [[piece, score] for piece, score in model.pieces],
                "byte_fallback": model.byte_fallback,
            }
        case WordLevel():
            return {
                "type": "WordLevel",
                "vocab": _by_id(model.vocab),
                "unk_token": model.unknown_token,
            }


def read_model(entry: dict[str, Any]) -> Model:
    """Build the model that a `model` entry describes.

    Raises:
        UnsupportedPart: it is none of ours.
        KeyError, TypeError, ValueError: it is damaged.
    """
    match entry.get("type", "BPE"):
        case "BPE":
            return _read_bpe(entry)
        case "WordPiece":
            return WordPiece(
                vocab=entry["vocab"],
                unknown_token=entry["unk_token"],
                prefix=entry["continuing_subword_prefix"],
                max_chars=entry["max_input_chars_per_word"],
            )
        case "Unigram":
            return Unigram(
                pieces=tuple((str(piece), float(score)) for piece, score in entry["vocab"]),
                unk_id=entry["unk_id"],
                byte_fallback=bool(entry.get("byte_fallback")),
            )
        case "WordLevel":
            return WordLevel(vocab=entry["vocab"], unknown_token=entry["unk_token"])
        case kind:
            raise UnsupportedPart(f"model {kind} is not supported yet")


def _read_bpe(entry: dict[str, Any]) -> ByteLevelBPE:
    for key, allowed in _UNUSED_BPE.items():
        if entry.get(key) not in allowed:
            raise UnsupportedPart(f"model BPE with {key}={entry[key]!r} is not supported yet")
    return ByteLevelBPE(
        vocab=entry["vocab"],
        merges=tuple(_pair(merge) for merge in entry["merges"]),
        ignore_merges=bool(entry.get("ignore_merges")),
        unknown_token=entry.get("unk_token"),
    )


def _pair(merge: str | list[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _by_id(vocab: dict[str, int]) -> dict[str, int]:
    return dict(sorted(vocab.items(), key=lambda item: item[1]))
