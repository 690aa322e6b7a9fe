"""A GGUF file becomes a model folder: configuration, weights and tokenizer.

Reads one file, writes one folder that `load_model` and transformers read. Not here: the file format
(gguf.py), names and layouts (gguf_architectures.py), the tokenizer (gguf_tokenizer.py). Quantised
weights are decoded to the dtype asked for: the folder computes what the GGUF computes, not what the
model computed before somebody quantised it.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from llmlab.errors import ModelError
from llmlab.model.build import build_model
from llmlab.model.config import ModelConfig
from llmlab.model.expert_names import joined_experts, parted_experts
from llmlab.model.folder import save_model
from llmlab.model.gguf import GgufFile
from llmlab.model.gguf_architectures import hf_array, hf_config, hf_weights
from llmlab.model.gguf_names import is_stacked
from llmlab.model.gguf_tokenizer import gguf_tokenizer
from llmlab.model.language_model import LanguageModel
from llmlab.outputs import check_free
from llmlab.track import OnProgress, silent


def import_gguf(
    file: Path | str,
    out: Path | str,
    *,
    dtype: str = "float32",
    overwrite: bool = False,
    on_progress: OnProgress = silent,
) -> Path:
    """Turn a GGUF file into a model folder.

    Args:
        file: a llama, qwen2, qwen3, qwen3moe or gpt2 model with a tokenizer that gguf_vocab.py
            names, its tensors in F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K or Q6_K.
        out: where the model folder shall appear.
        dtype: float32, bfloat16 or float16, of the weights in the folder.
        overwrite: replace an existing folder.
        on_progress: told the tensors decoded so far.

    Returns:
        `out`.

    Raises:
        ModelError: the file is damaged, or something in it is not read here; named.
        OutputError: `out` exists and `overwrite` is false.
    """
    out = Path(out)
    check_free(out, overwrite=overwrite)
    source = GgufFile(file)
    tokenizer = gguf_tokenizer(source)
    model = gguf_model(source, on_progress=on_progress)
    save_model(model, tokenizer, out, dtype=dtype, overwrite=overwrite)
    return out


def gguf_model(file: GgufFile, *, on_progress: OnProgress = silent) -> LanguageModel:
    """Build the model a GGUF file holds, in float32 on the CPU.

    Raises:
        ModelError: the architecture is not read here, or a tensor is missing or misshapen.
    """
    raw = hf_config(file)
    config = ModelConfig.from_dict(raw | _special_ids(file))
    with torch.device("meta"):
        model = build_model(config)
    state = model.state_dict()
    wanted = parted_experts(state)
    places = hf_weights(file, raw)
    _check_names(wanted, places, file)
    weights: dict[str, Tensor] = {}
    for done, (tensor, names) in enumerate(places.items(), start=1):
        array = hf_array(file, tensor, raw)
        parts = array if is_stacked(tensor) else [array]
        for name, part in zip(names, parts, strict=False):
            weights[name] = torch.from_numpy(part)
            _check_shape(name, weights[name], wanted[name], file)
        on_progress({"tensors": f"{done}/{len(places)}"})
    model.load_state_dict(joined_experts(weights, state), strict=True, assign=True)
    return model


def _special_ids(file: GgufFile) -> dict[str, int]:
    names = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}
    return {
        field: int(file.metadata[f"tokenizer.ggml.{name}_token_id"])
        for name, field in names.items()
        if f"tokenizer.ggml.{name}_token_id" in file.metadata
    }


def _check_names(
    wanted: Mapping[str, Tensor], places: Mapping[str, list[str]], file: GgufFile
) -> None:
    found = {name: tensor for tensor, names in places.items() for name in names}
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or extra:
        what = f"lacks {missing[0]}" if missing else f"has {found[extra[0]]!r}, which is unknown"
        raise ModelError(
            f"{file.path} {what} ({len(missing)} tensors missing, {len(extra)} too many); "
            "the file is incomplete or a variant that is not read"
        )


def _check_shape(name: str, tensor: Tensor, parameter: Tensor, file: GgufFile) -> None:
    if tensor.shape != parameter.shape:
        raise ModelError(
            f"{file.path}: {name} has shape {tuple(tensor.shape)}, its metadata say "
            f"{tuple(parameter.shape)}; the file is damaged"
        )
