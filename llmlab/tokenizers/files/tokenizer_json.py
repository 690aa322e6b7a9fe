"""tokenizer.json: a pipeline in the format of Hugging Face `tokenizers`, read and written.

Read are the pipelines of GPT-2, Llama 3, Qwen 2 and 3, SmolLM2, BERT and every one trained or
imported here; a part that is none of ours raises `UnsupportedPart`, which names it. Truncation and
padding, which some files carry, are settings of a call and not kept.
"""

from dataclasses import asdict, fields
from typing import Any

from llmlab.errors import TokenizerError, UnsupportedPart
from llmlab.tokenizers.added_tokens import AddedToken
from llmlab.tokenizers.cuts import Cut, cut_of_component
from llmlab.tokenizers.decoders import ByteLevelDecoder, decoder_of_component
from llmlab.tokenizers.files.model_json import read_model
from llmlab.tokenizers.models.bpe import ByteLevelBPE
from llmlab.tokenizers.normalizers import normalizer_component, normalizer_steps
from llmlab.tokenizers.pipeline import Pipeline
from llmlab.tokenizers.splits import Split, split_of_component

_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": False,
    "use_regex": False,
}
_MAX_IDS = 2**24


def write_pipeline(pipeline: Pipeline) -> dict[str, Any]:
    """Return the content of tokenizer.json."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [asdict(token) for token in pipeline.added_tokens],
        "normalizer": normalizer_component(pipeline.normalizers),
        "pre_tokenizer": pipeline.split.component,
        "post_processor": _post_processor(pipeline),
        "decoder": pipeline.decoder.component,
        "model": pipeline.model.component,
    }


def read_pipeline(content: dict[str, Any]) -> Pipeline:
    """Build the pipeline that the content of a tokenizer.json describes.

    Raises:
        UnsupportedPart: a part is none of ours (named).
        TokenizerError: a part is damaged.
    """
    try:
        return _read(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TokenizerError(f"not a whole tokenizer.json: {error!r}; write it anew") from error


def _read(content: dict[str, Any]) -> Pipeline:
    known = {field.name for field in fields(AddedToken)}
    added = [
        AddedToken(**{key: value for key, value in token.items() if key in known})
        for token in content.get("added_tokens") or []
    ]
    model = read_model(content["model"], {token.id for token in added if token.special})
    ids = [*model.vocab.values(), *(token.id for token in added)]
    if not all(type(number) is int and 0 <= number < _MAX_IDS for number in ids):
        raise ValueError(f"an id is not a whole number from 0 to {_MAX_IDS - 1}")
    bos_tokens, eos_tokens = _template(content.get("post_processor"))
    decoder = decoder_of_component(content["decoder"])
    is_bytes = isinstance(model, ByteLevelBPE)
    if is_bytes != isinstance(decoder, ByteLevelDecoder):
        kind = type(model).__name__
        raise UnsupportedPart(f"decoder {content['decoder']} with {kind} is not supported yet")
    return Pipeline(
        added_tokens=tuple(sorted(added, key=lambda token: token.id)),
        normalizers=normalizer_steps(content.get("normalizer")),
        split=_cut(content.get("pre_tokenizer"), is_bytes=is_bytes),
        model=model,
        bos_tokens=bos_tokens,
        eos_tokens=eos_tokens,
        decoder=decoder,
    )


def _cut(component: dict[str, Any] | None, *, is_bytes: bool) -> Split | Cut:
    return split_of_component(component) if is_bytes else cut_of_component(component)


def _post_processor(pipeline: Pipeline) -> dict[str, Any] | None:
    processors = [_BYTE_LEVEL] if isinstance(pipeline.model, ByteLevelBPE) else []
    if pipeline.bos_tokens or pipeline.eos_tokens:
        processors.append(_template_processing(pipeline))
    if len(processors) > 1:
        return {"type": "Sequence", "processors": processors}
    return processors[0] if processors else None


def _template_processing(pipeline: Pipeline) -> dict[str, Any]:
    def around(sequence: str, type_id: int, before: tuple[str, ...]) -> list[dict[str, Any]]:
        return [
            *({"SpecialToken": {"id": token, "type_id": type_id}} for token in before),
            {"Sequence": {"id": sequence, "type_id": type_id}},
            *({"SpecialToken": {"id": token, "type_id": type_id}} for token in pipeline.eos_tokens),
        ]

    ids = {token.content: token.id for token in pipeline.added_tokens} | dict(pipeline.vocab)
    # BERT starts a pair once, decoders start each of the two.
    second = () if pipeline.eos_tokens else pipeline.bos_tokens
    single = around("A", 0, pipeline.bos_tokens)
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, *around("B", 1, second)],
        "special_tokens": {
            token: {"id": token, "ids": [ids[token]], "tokens": [token]}
            for token in (*pipeline.bos_tokens, *pipeline.eos_tokens)
        },
    }


def _template(component: dict[str, Any] | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the tokens that a post-processor puts before and after a text."""
    if component is None or component["type"] == "ByteLevel":
        return (), ()
    if component["type"] == "Sequence":
        parts = [_template(part) for part in component["processors"]]
        return sum((part[0] for part in parts), ()), sum((part[1] for part in parts), ())
    if component["type"] in ("BertProcessing", "RobertaProcessing"):
        return (component["cls"][0],), (component["sep"][0],)
    if component["type"] != "TemplateProcessing":
        raise UnsupportedPart(f"post_processor {component['type']} is not supported yet")
    single = component["single"]
    at = next(number for number, part in enumerate(single) if "Sequence" in part)
    before, after = single[:at], single[at + 1 :]
    if any("SpecialToken" not in part for part in [*before, *after]):
        raise UnsupportedPart("post_processor with two texts in its template is not supported yet")
    return _contents(before), _contents(after)


def _contents(parts: list[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(part["SpecialToken"]["id"] for part in parts)
