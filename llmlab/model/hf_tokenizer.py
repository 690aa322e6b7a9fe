"""The tokenizer of a folder that transformers wrote.

`tokenizer.json` decides if there is one. Else a SentencePiece model, `tokenizer.model`, does, with
what tokenizer_config.json adds to it: tokens beside the pieces, what starts a text, the template.

Not here: how either file is read (llmlab/tokenizers).
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmlab.errors import TokenizerError
from llmlab.tokenizers import Tokenizer
from llmlab.tokenizers.added_tokens import AddedToken
from llmlab.tokenizers.files.folder import read_settings
from llmlab.tokenizers.files.sentencepiece_model import read_sentencepiece
from llmlab.tokenizers.files.sentencepiece_pipeline import sentencepiece_pipeline

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def folder_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer of a model folder.

    Raises:
        TokenizerError: there is none that is read here, or a file is damaged.
        MissingExtraError: its pipeline is none of llmlab's, and `tokenizers` is not installed.
    """
    if (folder / "tokenizer.json").is_file():
        return Tokenizer.load(folder)
    if (folder / "tokenizer.model").is_file():
        return _sentencepiece(folder)
    raise TokenizerError(
        f"{folder} has no tokenizer.json and no tokenizer.model; in transformers, "
        "AutoTokenizer.from_pretrained(folder).save_pretrained(folder) writes tokenizer.json"
    )


def _sentencepiece(folder: Path) -> Tokenizer:
    pipeline, names = sentencepiece_pipeline(read_sentencepiece(folder / "tokenizer.model"))
    said, chat_template, config = read_settings(folder)
    names |= said
    if config.get("add_prefix_space") is False:
        raise TokenizerError(
            f"{folder}: add_prefix_space=False takes back what tokenizer.model says, which is not "
            "read; in transformers, save the tokenizer as tokenizer.json"
        )
    added = {token.id: token for token in pipeline.added_tokens} | _added_tokens(config)
    # All classes that read a tokenizer.model for these models start a text with BOS unless told.
    starts = config.get("add_bos_token", True) and "bos_token" in names
    ends = config.get("add_eos_token", False) and "eos_token" in names
    pipeline = dataclasses.replace(
        pipeline,
        added_tokens=tuple(added[at] for at in sorted(added)),
        bos_tokens=(names["bos_token"],) if starts else (),
        eos_tokens=(names["eos_token"],) if ends else (),
    )
    return Tokenizer(pipeline, names=names, chat_template=chat_template)


def _added_tokens(config: Mapping[str, Any]) -> dict[int, AddedToken]:
    listed = config.get("added_tokens_decoder") or {}
    return {
        int(at): AddedToken(
            int(at), token["content"], **{flag: token[flag] for flag in _FLAGS if flag in token}
        )
        for at, token in listed.items()
    }
