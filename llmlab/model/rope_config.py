"""Rotary position settings as Hugging Face writes them: one frequency base and maybe a scaling.

Not here: the rotation itself (rope.py). Reads both spellings on disk: `rope_theta` with
`rope_scaling` (transformers 4) and `rope_parameters` (transformers 5). Writes the first, which
both versions load. Sources: arXiv:2104.09864 (RoPE), arXiv:2306.15595 (linear scaling),
arXiv:2407.21783 (the llama3 scaling), arXiv:2309.00071 (dynamic and yarn).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmlab.errors import ModelError, did_you_mean

_ORIGINAL = "original_max_position_embeddings"
_REQUIRED: dict[str, tuple[str, ...]] = {
    "linear": (),
    "dynamic": (),
    "llama3": ("low_freq_factor", "high_freq_factor", _ORIGINAL),
    "yarn": (_ORIGINAL,),
}
_OPTIONAL: dict[str, tuple[str, ...]] = {
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
}
_KINDS = ", ".join(("default", *_REQUIRED))


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How a model stretches its rotary frequencies beyond the length it was first trained on.

    None in a field that a kind does not need, or of which it has a default.
    """

    rope_type: str
    """`linear` divides every frequency by `factor`; `llama3` and `yarn` only the slow ones;
    `dynamic` raises the base, and only for texts longer than `max_position_embeddings`."""
    factor: float
    """How many times longer the context becomes."""
    low_freq_factor: float | None = None
    """llama3: wavelengths above original length / this are divided by `factor`."""
    high_freq_factor: float | None = None
    """llama3: wavelengths below original length / this stay as they are."""
    original_max_position_embeddings: int | None = None
    """llama3, yarn: tokens of context in the first training."""
    attention_factor: float | None = None
    """yarn: cosines and sines are multiplied by this; 0.1 ln factor + 1 when None."""
    beta_fast: float | None = None
    """yarn: dimensions that turn oftener than this in the original length stay; 32 when None."""
    beta_slow: float | None = None
    """yarn: dimensions that turn less often are divided by `factor`; 1 when None."""
    mscale: float | None = None
    """yarn: with `mscale_all_dim`, weighs ln factor in the numerator of the attention factor."""
    mscale_all_dim: float | None = None
    """yarn: the same in the denominator."""
    truncate: bool | None = None
    """yarn: round the bounds between the dimensions to whole ones; yes when None."""

    def __post_init__(self) -> None:
        """Refuse a kind that is not implemented, and fields that do not go with the kind.

        Raises:
            ModelError: names the field.
        """
        kind = self.rope_type
        _check_kind(kind)
        needed = _REQUIRED[kind]
        missing = [name for name in needed if getattr(self, name) is None]
        if missing:
            raise ModelError(f"rope_type={kind!r} needs {', '.join(missing)}; add them")
        allowed = {"rope_type", "factor", *needed, *_OPTIONAL.get(kind, ())}
        for name, value in vars(self).items():
            if name not in allowed and value is not None:
                raise ModelError(f"rope_type={kind!r} has no {name}={value}; remove it")

    def to_dict(self) -> dict[str, Any]:
        """Return the value of `rope_scaling` in config.json."""
        return {name: value for name, value in vars(self).items() if value is not None}


def read_rope(raw: Mapping[str, Any]) -> tuple[float | None, RopeScaling | None]:
    """Read the frequency base and the scaling from a config.json in either spelling.

    Returns:
        `rope_theta`, or None where the file leaves it to its default; the scaling, or None.

    Raises:
        ModelError: a scaling that is not supported, or a rotation of only a part of each head.
    """
    values = _rope_fields(raw)
    theta = values.pop("rope_theta", raw.get("rope_theta"))
    kind = values.pop("rope_type", values.pop("type", "default"))
    values.pop("type", None)
    if values.pop("partial_rotary_factor", 1.0) != 1.0:
        raise ModelError("partial_rotary_factor other than 1.0 is not supported; use another model")
    if kind == "default":
        return theta, None
    _check_kind(kind)
    known = {field.name for field in dataclasses.fields(RopeScaling)} - {"rope_type"}
    for name in values:
        if name not in known:
            raise ModelError(f"unknown field {name!r} in rope_scaling{did_you_mean(name, known)}")
    if _ORIGINAL not in _REQUIRED[kind]:
        values.pop(_ORIGINAL, None)  # some files have it beside every kind
    elif kind == "yarn":
        values.setdefault(_ORIGINAL, raw.get("max_position_embeddings"))  # as transformers does
    if "factor" not in values:
        raise ModelError(f"rope_type={kind!r} needs factor; add it to rope_scaling")
    return theta, RopeScaling(rope_type=kind, **values)


def _rope_fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        part = raw.get(name) or {}
        if not isinstance(part, Mapping):
            raise ModelError(f"{name}={part!r} is not a table; write {{'rope_type': ...}}")
        values |= part
    return values


def _check_kind(kind: str) -> None:
    if kind not in _REQUIRED:
        raise ModelError(f"rope_type={kind!r} is not supported; supported: {_KINDS}")
