"""Read the `model` entry of tokenizer.json; each model writes its own (`component`)."""

from collections.abc import Set
from typing import Any

from llmlab.errors import UnsupportedPart
from llmlab.tokenizers.decoders import BYTE_TOKEN
from llmlab.tokenizers.models.bpe import ByteLevelBPE
from llmlab.tokenizers.models.sentencepiece_bpe import SentencePieceBPE
from llmlab.tokenizers.models.unigram import Unigram
from llmlab.tokenizers.models.word_level import WordLevel
from llmlab.tokenizers.models.wordpiece import WordPiece
from llmlab.tokenizers.pipeline import Model
from llmlab.tokenizers.sentencepiece_rules import KEY

# Settings of a BPE model that only mean something outside byte-level BPE.
_UNUSED_BPE = {
    "dropout": (None, 0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "fuse_unk": (None, False),
    "byte_fallback": (None, False),
}


def read_model(entry: dict[str, Any], special_ids: Set[int]) -> Model:
    """Build the model that a `model` entry describes.

    Args:
        entry: as it stands in the file.
        special_ids: ids that no text may become.

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
            return _read_unigram(entry, special_ids)
        case "WordLevel":
            return WordLevel(vocab=entry["vocab"], unknown_token=entry["unk_token"])
        case kind:
            raise UnsupportedPart(f"model {kind} is not supported yet")


def _read_bpe(entry: dict[str, Any]) -> ByteLevelBPE | SentencePieceBPE:
    if KEY in entry:
        return _read_sentencepiece_bpe(entry)
    for key, allowed in _UNUSED_BPE.items():
        if entry.get(key) not in allowed:
            raise UnsupportedPart(f"model BPE with {key}={entry[key]!r} is not supported yet")
    return ByteLevelBPE(
        vocab=entry["vocab"],
        merges=tuple(_pair(merge) for merge in entry["merges"]),
        ignore_merges=bool(entry.get("ignore_merges")),
        unknown_token=entry.get("unk_token"),
    )


def _read_sentencepiece_bpe(entry: dict[str, Any]) -> SentencePieceBPE:
    extra = entry[KEY]
    names = sorted(entry["vocab"], key=entry["vocab"].__getitem__)
    return SentencePieceBPE(
        pieces=tuple(zip(names, map(float, extra["scores"]), strict=True)),
        unk_id=entry["vocab"].get(entry["unk_token"]),
        byte_fallback=bool(entry["byte_fallback"]),
        user_defined=frozenset(extra["user_defined"]),
        unused=frozenset(extra["unused"]),
        unmatched=frozenset(extra["unmatched"]),
    )


def _read_unigram(entry: dict[str, Any], special_ids: Set[int]) -> Unigram:
    pieces = tuple((str(piece), float(score)) for piece, score in entry["vocab"])
    falls_back = bool(entry.get("byte_fallback"))
    if KEY in entry:
        return Unigram(
            pieces=pieces,
            unk_id=entry["unk_id"],
            byte_fallback=falls_back,
            user_defined=frozenset(entry[KEY]["user_defined"]),
            unmatched=frozenset(entry[KEY]["unmatched"]),
        )
    unmatched = {
        at for at, (piece, _) in enumerate(pieces) if falls_back and BYTE_TOKEN.fullmatch(piece)
    }
    return Unigram(
        pieces=pieces,
        unk_id=entry["unk_id"],
        byte_fallback=falls_back,
        unmatched=frozenset(unmatched | special_ids),
        single_precision=False,
    )


def _pair(merge: str | list[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right
