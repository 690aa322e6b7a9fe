"""tokenizer.json: a pipeline in the format of Hugging Face `tokenizers`, read and written.

Read are byte-level BPE files with the parts that GPT-2, Llama 3, Qwen 2 and 3, and SmolLM2 use;
any other part raises an error that names it. Truncation and padding, which some files carry, are
settings of a call and not kept.
"""

from dataclasses import asdict, fields
from typing import Any, Literal

from llmlab.errors import TokenizerError
from llmlab.tokenizers.added_tokens import AddedToken
from llmlab.tokenizers.pipeline import Pipeline
from llmlab.tokenizers.splits import split_of_component

_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": False,
    "use_regex": False,
}
_MAX_IDS = 2**24
# Settings of a BPE model that only mean something outside byte-level BPE.
_UNUSED = {
    "dropout": (None, 0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "fuse_unk": (None, False),
    "byte_fallback": (None, False),
}


def write_pipeline(pipeline: Pipeline) -> dict[str, Any]:
    """Return the content of tokenizer.json."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [asdict(token) for token in pipeline.added_tokens],
        "normalizer": {"type": pipeline.normalizer} if pipeline.normalizer else None,
        "pre_tokenizer": pipeline.split.component,
        "post_processor": _post_processor(pipeline),
        "decoder": {**_BYTE_LEVEL, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": pipeline.unknown_token,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pipeline.ignore_merges,
            "vocab": dict(sorted(pipeline.vocab.items(), key=lambda item: item[1])),
            "merges": [list(pair) for pair in pipeline.merges],
        },
    }


def read_pipeline(content: dict[str, Any]) -> Pipeline:
    """Build the pipeline that the content of a tokenizer.json describes.

    Raises:
        TokenizerError: a part is not supported yet (named), or is damaged.
    """
    try:
        return _read(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TokenizerError(f"not a whole tokenizer.json: {error!r}; write it anew") from error


def _read(content: dict[str, Any]) -> Pipeline:
    model = content["model"]
    _check_model(model)
    if (content["decoder"] or {}).get("type") != "ByteLevel":
        kind = (content["decoder"] or {}).get("type")
        raise TokenizerError(f"decoder {kind} is not supported yet; only ByteLevel is")
    known = {field.name for field in fields(AddedToken)}
    added = [
        AddedToken(**{key: value for key, value in token.items() if key in known})
        for token in content.get("added_tokens") or []
    ]
    ids = [*model["vocab"].values(), *(token.id for token in added)]
    if not all(type(number) is int and 0 <= number < _MAX_IDS for number in ids):
        raise ValueError(f"an id is not a whole number from 0 to {_MAX_IDS - 1}")
    return Pipeline(
        vocab=model["vocab"],
        merges=tuple(_pair(merge) for merge in model["merges"]),
        split=split_of_component(content.get("pre_tokenizer")),
        added_tokens=tuple(sorted(added, key=lambda token: token.id)),
        normalizer=_normalizer(content.get("normalizer")),
        ignore_merges=bool(model.get("ignore_merges")),
        unknown_token=model.get("unk_token"),
        bos_tokens=_bos_tokens(content.get("post_processor")),
    )


def _check_model(model: dict[str, Any]) -> None:
    if model.get("type", "BPE") != "BPE":
        raise TokenizerError(f"model {model['type']} is not supported yet; only BPE is")
    for key, allowed in _UNUSED.items():
        if model.get(key) not in allowed:
            raise TokenizerError(f"model BPE with {key}={model[key]!r} is not supported yet")


def _pair(merge: str | list[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _normalizer(component: dict[str, Any] | None) -> Literal["NFC"] | None:
    if component and component["type"] == "Sequence" and len(component["normalizers"]) <= 1:
        component = next(iter(component["normalizers"]), None)
    if component is None:
        return None
    if component["type"] != "NFC":
        raise TokenizerError(f"normalizer {component['type']} is not supported yet; only NFC is")
    return "NFC"


def _post_processor(pipeline: Pipeline) -> dict[str, Any]:
    if not pipeline.bos_tokens:
        return _BYTE_LEVEL
    ids = {token.content: token.id for token in pipeline.added_tokens} | pipeline.vocab
    first = [{"SpecialToken": {"id": bos, "type_id": 0}} for bos in pipeline.bos_tokens]
    second = [{"SpecialToken": {"id": bos, "type_id": 1}} for bos in pipeline.bos_tokens]
    text = [{"Sequence": {"id": "A", "type_id": 0}}]
    template = {
        "type": "TemplateProcessing",
        "single": [*first, *text],
        "pair": [*first, *text, *second, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            bos: {"id": bos, "ids": [ids[bos]], "tokens": [bos]} for bos in pipeline.bos_tokens
        },
    }
    return {"type": "Sequence", "processors": [_BYTE_LEVEL, template]}


def _bos_tokens(component: dict[str, Any] | None) -> tuple[str, ...]:
    """Return the tokens that a post-processor puts before a text."""
    if component is None or component["type"] == "ByteLevel":
        return ()
    if component["type"] == "Sequence":
        parts = [_bos_tokens(part) for part in component["processors"]]
        return tuple(token for part in parts for token in part)
    if component["type"] != "TemplateProcessing":
        raise TokenizerError(f"post_processor {component['type']} is not supported yet")
    *before, last = component["single"]
    if "Sequence" not in last or any("SpecialToken" not in part for part in before):
        raise TokenizerError(
            "post_processor TemplateProcessing that adds tokens after the text is not supported yet"
        )
    return tuple(part["SpecialToken"]["id"] for part in before)
