"""A tokenizer as the metadata of a GGUF file, so that llama.cpp makes the same ids.

| algorithm | GGUF's name | module |
|---|---|---|
| byte-level BPE | gpt2 | gguf_byte_level.py |
| WordPiece | bert | gguf_wordpiece.py |
| Unigram | t5 | gguf_unigram.py |
| SentencePiece's BPE and characters | llama | gguf_sentencepiece_bpe.py |

What such a file cannot say is refused with the reason; where llama.cpp's ids differ nevertheless,
the module of the algorithm says so. Character and word level are no algorithms of llama.cpp.

Reading back what was written here gives an equal tokenizer; from other files it is what the file
says, and where the file is silent what llama.cpp does.

Not here: the format of the file (gguf_writer.py, llmlab/model/gguf.py).
Source: the GGUF specification (github.com/ggml-org/ggml, docs/gguf.md) and what llama.cpp reads.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmlab.errors import TokenizerError
from llmlab.tokenizers.files.gguf_byte_level import byte_level_metadata, byte_level_pipeline
from llmlab.tokenizers.files.gguf_sentencepiece_bpe import (
    sentencepiece_bpe_metadata,
    sentencepiece_bpe_pipeline,
)
from llmlab.tokenizers.files.gguf_tokens import GgufTokens
from llmlab.tokenizers.files.gguf_unigram import unigram_metadata, unigram_pipeline
from llmlab.tokenizers.files.gguf_wordpiece import wordpiece_metadata, wordpiece_pipeline
from llmlab.tokenizers.files.gguf_writer import Value, write_gguf
from llmlab.tokenizers.files.sentencepiece_model import PieceType
from llmlab.tokenizers.models.bpe import ByteLevelBPE
from llmlab.tokenizers.models.sentencepiece_bpe import SentencePieceBPE
from llmlab.tokenizers.models.unigram import Unigram
from llmlab.tokenizers.models.wordpiece import WordPiece
from llmlab.tokenizers.pipeline import Pipeline
from llmlab.tokenizers.tokenizer import Tokenizer

_READERS = {
    "bert": wordpiece_pipeline,
    "gpt2": byte_level_pipeline,
    "llama": sentencepiece_bpe_pipeline,
    "t5": unigram_pipeline,
}


def gguf_metadata(tokenizer: Tokenizer, *, num_rows: int | None = None) -> dict[str, Value]:
    """Return the `tokenizer.*` keys of a GGUF file.

    Args:
        tokenizer: the tokenizer.
        num_rows: rows of the model's embedding, when it has more than there are tokens: llama.cpp
            wants a token for each.

    Raises:
        TokenizerError: llama.cpp cannot make the same ids; the message says why.
    """
    metadata = _metadata(tokenizer)
    spare = range(tokenizer.vocab_size, num_rows or 0)
    _extend(metadata, "tokens", [f"[PAD{token_id}]" for token_id in spare])
    _extend(metadata, "token_type", [PieceType.UNUSED] * len(spare))
    _extend(metadata, "scores", [0.0] * len(spare))
    return metadata


def _extend(metadata: dict[str, Value], name: str, more: list[Any]) -> None:
    """Lengthen the list `tokenizer.ggml.NAME`, where there is one."""
    key = f"tokenizer.ggml.{name}"
    listed = metadata.get(key)
    if isinstance(listed, np.ndarray):
        metadata[key] = np.concatenate([listed, np.array(more, listed.dtype)])
    elif isinstance(listed, list):
        metadata[key] = [*listed, *more]


def _metadata(tokenizer: Tokenizer) -> dict[str, Value]:
    pipeline = tokenizer.pipeline
    if not isinstance(pipeline, Pipeline):
        raise TokenizerError(
            "the tokenizer has a part that only Hugging Face tokenizers runs, which no GGUF file "
            "can name; use one of llmlab's own algorithms"
        )
    match pipeline.model:
        case ByteLevelBPE() as model:
            return byte_level_metadata(tokenizer, pipeline, model)
        case WordPiece() as model:
            return wordpiece_metadata(tokenizer, pipeline, model)
        case Unigram() as model:
            return unigram_metadata(tokenizer, pipeline, model)
        case SentencePieceBPE() as model:
            return sentencepiece_bpe_metadata(tokenizer, pipeline, model)
        case _:
            raise TokenizerError(
                "llama.cpp has no tokenizer of whole words or single characters; train one with "
                "algorithm='bpe', 'unigram' or 'wordpiece'"
            )


def write_vocab_gguf(tokenizer: Tokenizer, path: Path | str) -> None:
    """Write a GGUF file that holds a tokenizer and no model, whole or not at all.

    llama.cpp loads it with `vocab_only`.

    Raises:
        TokenizerError: as `gguf_metadata`.
        OutputError: the file cannot be written.
    """
    general: dict[str, Value] = {"general.architecture": "llama", "general.type": "model"}
    write_gguf(path, general | gguf_metadata(tokenizer))


def tokenizer_of_metadata(metadata: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer that the metadata of a GGUF file describe.

    Args:
        metadata: key to value; numbers and text as Python's, arrays of numbers as numpy arrays.

    Raises:
        TokenizerError: the algorithm is none of ours, or the file is damaged.
    """
    kind = metadata.get("tokenizer.ggml.model", "none")
    if kind not in _READERS:
        raise TokenizerError(
            f"the tokenizer model {kind!r} is not supported yet; read are {', '.join(_READERS)}"
        )
    try:
        tokens = GgufTokens(metadata)
        return Tokenizer(
            _READERS[kind](tokens),
            names=tokens.names(),
            chat_template=metadata.get("tokenizer.chat_template"),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise TokenizerError(f"not a whole tokenizer: {error!r}; fetch the file again") from error
