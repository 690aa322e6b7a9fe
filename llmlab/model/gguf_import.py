"""A GGUF file becomes a model folder: configuration, weights and tokenizer.

Reads one file, writes one folder that `load_model` and transformers read. Not here: the file format
(gguf.py), names and layouts (gguf_architectures.py), the tokenizer (gguf_tokenizer.py). Quantised
weights are decoded to the dtype asked for: the folder computes what the GGUF computes, not what the
model computed before somebody quantised it.
"""

from pathlib import Path

import torch
from torch import Tensor

from llmlab.errors import ModelError
from llmlab.model.build import build_model
from llmlab.model.config import ModelConfig
from llmlab.model.folder import save_model
from llmlab.model.gguf import GgufFile
from llmlab.model.gguf_architectures import hf_array, hf_config, hf_weights
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
        file: a llama, qwen2, qwen3 or gpt2 model with a tokenizer that gguf_vocab.py names, its
            tensors in F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K or Q6_K.
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
    places = hf_weights(file, raw)
    _check_names(model, places, file)
    weights: dict[str, Tensor] = {}
    for done, (name, tensor) in enumerate(places.items(), start=1):
        weights[name] = torch.from_numpy(hf_array(file, tensor, raw))
        _check_shape(name, weights[name], model.get_parameter(name), file)
        on_progress({"tensors": f"{done}/{len(places)}"})
    model.load_state_dict(weights, strict=True, assign=True)
    return model


def _special_ids(file: GgufFile) -> dict[str, int]:
    names = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}
    return {
        field: int(file.metadata[f"tokenizer.ggml.{name}_token_id"])
        for name, field in names.items()
        if f"tokenizer.ggml.{name}_token_id" in file.metadata
    }


def _check_names(model: LanguageModel, places: dict[str, str], file: GgufFile) -> None:
    wanted = {name for name, _ in model.named_parameters()}
    missing, extra = sorted(wanted - places.keys()), sorted(places.keys() - wanted)
    if missing or extra:
        what = f"lacks {missing[0]}" if missing else f"has {places[extra[0]]!r}, which is unknown"
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
