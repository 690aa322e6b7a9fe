"""Rotary position settings as Hugging Face writes them: one frequency base and maybe a scaling.

Not here: the rotation itself (rope.py). Reads both spellings on disk: `rope_theta` with
`rope_scaling` (transformers 4) and `rope_parameters` (transformers 5). Writes the first, which
both versions load. Sources: arXiv:2104.09864 (RoPE), arXiv:2306.15595 (linear scaling),
arXiv:2407.21783 (the llama3 scaling).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmlab.errors import ModelError, did_you_mean

_LLAMA3_FIELDS = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_NUMBERS = ("factor", *_LLAMA3_FIELDS)
_KINDS = ("linear", "llama3")


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How a model stretches its rotary frequencies beyond the length it was first trained on."""

    rope_type: str
    """`linear` divides every frequency by `factor`; `llama3` only the slow ones."""
    factor: float
    """How many times longer the context becomes."""
    low_freq_factor: float | None = None
    """llama3: wavelengths above original length / this are divided by `factor`."""
    high_freq_factor: float | None = None
    """llama3: wavelengths below original length / this stay as they are."""
    original_max_position_embeddings: int | None = None
    """llama3: tokens of context in the first training."""

    def __post_init__(self) -> None:
        if self.rope_type not in _KINDS:
            raise ModelError(
                f"rope_type={self.rope_type!r} is not supported; supported: default, linear, llama3"
            )
        missing = [name for name in _LLAMA3_FIELDS if getattr(self, name) is None]
        if self.rope_type == "llama3" and missing:
            raise ModelError(
                f"rope_type='llama3' needs {', '.join(missing)}; add them to the config"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the value of `rope_scaling` in config.json."""
        values = {name: getattr(self, name) for name in ("rope_type", *_NUMBERS)}
        return {name: value for name, value in values.items() if value is not None}


def read_rope(raw: Mapping[str, Any]) -> tuple[float | None, RopeScaling | None]:
    """Read the frequency base and the scaling from a config.json in either spelling.

    Returns:
        `rope_theta`, or None where the file leaves it to its default; the scaling, or None.

    Raises:
        ModelError: a scaling that is not supported, or a rotation of only a part of each head.
    """
    values: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        part = raw.get(name) or {}
        if not isinstance(part, Mapping):
            raise ModelError(f"{name}={part!r} is not a table; write {{'rope_type': ...}}")
        values |= part
    theta = values.pop("rope_theta", raw.get("rope_theta"))
    kind = values.pop("rope_type", values.pop("type", "default"))
    values.pop("type", None)
    if values.pop("partial_rotary_factor", 1.0) != 1.0:
        raise ModelError("partial_rotary_factor other than 1.0 is not supported; use another model")
    if kind == "default":
        return theta, None
    if kind not in _KINDS:
        raise ModelError(f"rope_type={kind!r} is not supported; supported: default, linear, llama3")
    for name in values:
        if name not in _NUMBERS:
            raise ModelError(
                f"unknown field {name!r} in rope_scaling{did_you_mean(name, _NUMBERS)}"
            )
    if "factor" not in values:
        raise ModelError(f"rope_type={kind!r} needs factor; add it to rope_scaling")
    return theta, RopeScaling(rope_type=kind, **values)
