"""Rotary scaling in a GGUF file, written and read.

| kind | in the file |
|---|---|
| linear | `rope.scaling.type`, `rope.scaling.factor` |
| yarn | the same, the original length, the betas and the factor on cosines and sines |
| llama3 | only the divisor of each frequency, the tensor `rope_freqs.weight` |

Which numbers of Llama 3's scaling lead to the divisors stands in keys `llmlab.rope.*`, which
llama.cpp passes over; in other files they are those of the Llama 3.1 release.

Not here: the other metadata (gguf_metadata.py, gguf_architectures.py), what scaling does (rope.py).
Source: llama.cpp's keys and tensor names; arXiv:2407.21783 (llama3), arXiv:2309.00071 (yarn).
"""

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmlab.errors import ModelError
from llmlab.model.config import ModelConfig
from llmlab.model.gguf import GgufFile
from llmlab.model.gguf_names import ROPE_FACTORS
from llmlab.model.rope import attention_factor, inverse_frequencies
from llmlab.model.rope_config import RopeScaling
from llmlab.tokenizers.files.gguf_writer import Value

_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_YARN_BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}


def scaling_metadata(config: ModelConfig, architecture: str) -> dict[str, Value]:
    """Return the keys that say how the rotary frequencies are scaled; none when they are not.

    Raises:
        ModelError: llama.cpp does not compute this scaling, or not for this architecture.
    """
    scaling = config.rope_scaling
    if scaling is None:
        return {}
    _check(scaling, architecture, config)
    if scaling.rope_type == "llama3":
        numbers = {key: value for key, value in scaling.to_dict().items() if key != "rope_type"}
        return {f"llmlab.rope.{key}": value for key, value in numbers.items()}
    keys: dict[str, Value] = {"type": scaling.rope_type, "factor": float(scaling.factor)}
    if scaling.rope_type == "yarn":
        assert scaling.original_max_position_embeddings is not None  # RopeScaling has checked it
        keys |= {
            "original_context_length": scaling.original_max_position_embeddings,
            "attn_factor": attention_factor(scaling) / _usual_factor(scaling.factor),
            "yarn_beta_fast": float(scaling.beta_fast or _YARN_BETAS["beta_fast"]),
            "yarn_beta_slow": float(scaling.beta_slow or _YARN_BETAS["beta_slow"]),
        }
    return {f"{architecture}.rope.scaling.{key}": value for key, value in keys.items()}


def rope_factors(config: ModelConfig) -> Tensor | None:
    """Return the divisor of each frequency: (D / 2,), float32, or None when keys say it all."""
    if config.rope_scaling is None or config.rope_scaling.rope_type != "llama3":
        return None
    plain = inverse_frequencies(dataclasses.replace(config, rope_scaling=None))
    factors = plain / inverse_frequencies(config)  # (D,), both halves alike
    return factors[: config.head_dim // 2].to(torch.float32)


def read_scaling(file: GgufFile, architecture: str, head_dim: int) -> dict[str, Any] | None:
    """Return Hugging Face's `rope_scaling`, from the keys or from stored divisors.

    Raises:
        ModelError: a scaling that is not read, or divisors that are not Llama 3's.
    """
    if ROPE_FACTORS in file.tensors:
        return _llama3(file, architecture, head_dim)
    prefix = f"{architecture}.rope.scaling."
    keys = {
        key.removeprefix(prefix): value
        for key, value in file.metadata.items()
        if key.startswith(prefix)
    }
    kind = keys.get("type", "none")
    if kind == "none":
        return None
    if kind not in ("linear", "yarn") or "factor" not in keys:
        raise ModelError(
            f"{file.path} scales its rotary embedding by {kind!r}; linear, yarn and llama3, each "
            "with its factor, are read"
        )
    factor = short(keys["factor"])
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    return {"rope_type": "yarn", "factor": factor, **_yarn(file, keys, factor)}


def short(value: float) -> float:
    """Return the shortest decimal that is the same float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _check(scaling: RopeScaling, architecture: str, config: ModelConfig) -> None:
    kind = scaling.rope_type
    if kind not in ("linear", "yarn", "llama3"):
        raise ModelError(
            f"rope_type={kind!r} is not computed by llama.cpp; linear, yarn and llama3 are"
        )
    if kind == "llama3" and architecture != "llama":
        raise ModelError(
            "rope_type='llama3' is computed by llama.cpp for Llama only, not for "
            f"{config.architecture}; use rope_type='yarn' or 'linear'"
        )
    if scaling.truncate is False:
        raise ModelError(
            "truncate=False in rope_scaling is not computed by llama.cpp, which rounds the "
            "dimensions between which yarn goes over; leave it out"
        )


def _usual_factor(factor: float) -> float:
    """Return what llama.cpp multiplies yarn's cosines and sines with beside `attn_factor`."""
    return 0.1 * math.log(factor) + 1


def _yarn(file: GgufFile, keys: dict[str, Any], factor: float) -> dict[str, Any]:
    if "original_context_length" not in keys:
        raise ModelError(f"{file.path} has yarn without original_context_length; it is incomplete")
    found: dict[str, Any] = {
        "original_max_position_embeddings": int(keys["original_context_length"])
    }
    for name, usual in _YARN_BETAS.items():
        beta = keys.get(f"yarn_{name}", usual)
        if beta != usual:
            found[name] = short(beta)
    times = keys.get("attn_factor", 1.0)
    if times != 1.0:
        # Two roundings to float32 leave six digits.
        found["attention_factor"] = float(f"{times * _usual_factor(factor):.6g}")
    return found


def _llama3(file: GgufFile, architecture: str, head_dim: int) -> dict[str, Any]:
    """Recognise Llama 3's scaling by the divisors it leads to.

    The divisor of a frequency is 1 for wavelengths under original length / high, `factor` for those
    over original length / low, and interpolated between (arXiv 2407.21783).
    """
    stored = file.array(ROPE_FACTORS).astype(np.float64)
    theta = float(file.metadata.get(f"{architecture}.rope.freq_base", 10000.0))
    said = {key: file.metadata.get(f"llmlab.rope.{key}", value) for key, value in _LLAMA3.items()}
    factor = float(file.metadata.get("llmlab.rope.factor", stored.max()))
    low, high, original_len = said.values()
    wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((original_len / wavelengths - low) / (high - low), 0.0, 1.0)
    expected = 1.0 / ((1.0 - smooth) / factor + smooth)
    if stored.shape != expected.shape or not np.allclose(stored, expected, rtol=1e-4):
        raise ModelError(
            f"{file.path} has rotary factors ({ROPE_FACTORS}) that are not Llama 3's; "
            "such a scaling is not read"
        )
    return {
        "rope_type": "llama3",
        "factor": short(factor),
        **{key: short(value) if isinstance(value, float) else value for key, value in said.items()},
    }
