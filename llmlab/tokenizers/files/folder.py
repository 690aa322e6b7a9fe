"""A tokenizer folder: the four files that `transformers.AutoTokenizer` and vLLM read.

`tokenizer.json` decides the ids; `tokenizer_config.json` and `special_tokens_map.json` say which
token plays which part; `chat_template.jinja` is the template. Older folders hold the template
inside tokenizer_config.json, which is read too.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmlab.errors import TokenizerError, UnsupportedPart
from llmlab.outputs import whole_file
from llmlab.tokenizers.files.foreign import ForeignPipeline
from llmlab.tokenizers.files.tokenizer_json import read_pipeline, write_pipeline
from llmlab.tokenizers.pipeline import Pipeline

_log = logging.getLogger(__name__)

ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
"""The parts a special token can play, as tokenizer_config.json names them."""


def write_folder(
    folder: Path | str,
    pipeline: Pipeline | ForeignPipeline,
    names: Mapping[str, str],
    chat_template: str | None,
) -> None:
    """Write the files into a folder, made if missing; other files in it stay.

    Args:
        folder: a tokenizer folder or a model folder.
        pipeline: what decides the ids.
        names: role (`eos_token`, …) to the token's text.
        chat_template: Jinja text, or None.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    decoder = {
        str(token.id): {key: value for key, value in asdict(token).items() if key != "id"}
        for token in pipeline.added_tokens
    }
    config = {
        "added_tokens_decoder": decoder,
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
        **names,
    }
    content = write_pipeline(pipeline) if isinstance(pipeline, Pipeline) else pipeline.content
    _write_json(folder / "tokenizer.json", content)
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", dict(names))
    template_file = folder / "chat_template.jinja"
    if chat_template is None:
        template_file.unlink(missing_ok=True)
        return
    with whole_file(template_file) as partial:
        partial.write_text(chat_template, encoding="utf-8", newline="")


def read_folder(
    folder: Path | str,
) -> tuple[Pipeline | ForeignPipeline, dict[str, str], str | None]:
    """Read a tokenizer folder, or a tokenizer.json with the files beside it.

    Returns:
        The pipeline, role to token, and the chat template.

    Raises:
        TokenizerError: there is no tokenizer.json, or a file is damaged.
    """
    folder = Path(folder)
    file = folder if folder.suffix == ".json" and folder.is_file() else folder / "tokenizer.json"
    folder = file.parent
    if not file.is_file():
        raise TokenizerError(
            f"{folder} has no tokenizer.json; give a tokenizer folder "
            "(`llmlab tokenizer train` writes one) or a model folder"
        )
    try:
        pipeline = _pipeline(_read_json(file))
    except TokenizerError as error:
        raise TokenizerError(f"{folder}: {error}") from error
    names, chat_template, _ = read_settings(folder)
    return pipeline, names, chat_template


def read_settings(folder: Path) -> tuple[dict[str, str], str | None, dict[str, Any]]:
    """Read what stands beside the vocabulary.

    Returns:
        Role to token, the chat template, and the content of tokenizer_config.json.

    Raises:
        TokenizerError: a file is damaged.
    """
    config = _read_optional_json(folder / "tokenizer_config.json")
    names = _names(_read_optional_json(folder / "special_tokens_map.json")) | _names(config)
    return names, _chat_template(folder, config), config


def _pipeline(content: dict[str, Any]) -> Pipeline | ForeignPipeline:
    try:
        return read_pipeline(content)
    except UnsupportedPart as error:
        _log.info("%s; Hugging Face tokenizers runs this pipeline", error)
        return ForeignPipeline(content)


def _names(content: dict[str, Any]) -> dict[str, str]:
    names = {}
    for role in ROLES:
        token = content.get(role)
        if isinstance(token, dict):
            token = token.get("content")
        if token:
            names[role] = str(token)
    return names


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_bytes().decode("utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several templates by name
        return next((each["template"] for each in template if each["name"] == "default"), None)
    return template


def _read_optional_json(path: Path) -> dict[str, Any]:
    return _read_json(path) if path.is_file() else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenizerError(f"{path} is not JSON: {error}; write it anew") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{path} holds {type(content).__name__}, not an object")
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with whole_file(path) as partial:
        partial.write_text(
            json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
        )
