"""Sliding windows as config.json describes them: which layers see only the last tokens.

Not here: the attention itself (attention.py). Each architecture spells it otherwise: Qwen2 and
Qwen3 have `use_sliding_window`, `sliding_window` and either `layer_types` or `max_window_layers`;
Qwen3-MoE and Mistral apply `sliding_window` to every layer. Torch-free.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from llmlab.errors import ModelError

FULL, SLIDING = "full_attention", "sliding_attention"

BY_LAYER = ("Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""Architectures whose layers may differ."""

ALIKE = ("Qwen3MoeForCausalLM", "MistralForCausalLM")
"""Architectures whose layers all have the same window."""

FIELDS = ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")
"""The fields of config.json that describe windows."""

_DEFAULT_WINDOW = 4096
_DEFAULT_FULL_LAYERS = 28


def read_windows(
    architecture: str, raw: Mapping[str, Any], num_layers: int
) -> tuple[int | None, tuple[str, ...] | None]:
    """Return `sliding_window` and `layer_types` as ModelConfig has them.

    Raises:
        ModelError: windows that this architecture has not, or not one type for each layer.
    """
    types = _layer_types(raw)
    window = raw.get("sliding_window", _DEFAULT_WINDOW)
    if architecture == "MistralForCausalLM":
        return (window, None) if types is None else _by_layer(window, types)
    uses = bool(raw.get("use_sliding_window"))
    if architecture not in (*BY_LAYER, *ALIKE):
        if uses or (types and SLIDING in types):
            raise ModelError(
                f"{architecture} has no sliding window; set use_sliding_window to false, or use "
                f"{', '.join((*BY_LAYER, *ALIKE))}"
            )
        return None, None
    if not uses or window is None:
        return None, None
    if architecture in ALIKE:
        return window, None
    if types is None:
        first = raw.get("max_window_layers", _DEFAULT_FULL_LAYERS)
        types = tuple(SLIDING if layer >= first else FULL for layer in range(num_layers))
    return _by_layer(window, types)


def write_windows(
    architecture: str, window: int | None, types: Sequence[str] | None, num_layers: int
) -> dict[str, Any]:
    """Return the fields that say the same in config.json."""
    if architecture == "MistralForCausalLM":
        return {"sliding_window": window}
    if window is None:
        return {}
    fields: dict[str, Any] = {"use_sliding_window": True, "sliding_window": window}
    if architecture in ALIKE:
        return fields
    types = types or (SLIDING,) * num_layers
    # Readers older than layer_types know only a number of full layers before all others.
    return {**fields, "max_window_layers": types.index(SLIDING), "layer_types": list(types)}


def mostly_sliding(architecture: str, num_layers: int) -> tuple[str, ...] | None:
    """Return layer types in which every fourth layer sees all, or None where layers are alike.

    The last layer counts as a fourth one, so that something sees the whole text.
    """
    if architecture not in BY_LAYER:
        return None
    return tuple(
        FULL if layer % 4 == 3 or layer == num_layers - 1 else SLIDING
        for layer in range(num_layers)
    )


def check_windows(
    architecture: str, window: int | None, types: Sequence[str] | None, num_layers: int
) -> None:
    """Refuse windows that cannot be.

    Raises:
        ModelError: names the field and its value.
    """
    if window is None:
        if types is not None:
            raise ModelError(f"layer_types={types!r} needs a sliding_window; set it")
        return
    if not isinstance(window, int) or window < 1:
        raise ModelError(f"sliding_window={window!r} is not a positive whole number; correct it")
    if architecture not in (*BY_LAYER, *ALIKE):
        raise ModelError(f"{architecture} has no sliding window; leave out sliding_window={window}")
    if types is None:
        return
    if architecture in ALIKE:
        raise ModelError(f"layers of {architecture} are all alike; leave out layer_types")
    if len(types) != num_layers or not set(types) <= {FULL, SLIDING}:
        raise ModelError(
            f"layer_types={types!r} must have one of {FULL} and {SLIDING} for each of the "
            f"{num_layers} layers"
        )


def _layer_types(raw: Mapping[str, Any]) -> tuple[str, ...] | None:
    types = raw.get("layer_types")
    return None if types is None else tuple(types)


def _by_layer(
    window: int | None, types: tuple[str, ...]
) -> tuple[int | None, tuple[str, ...] | None]:
    """Leave out a window that no layer has, and types that are all the same."""
    if SLIDING not in types:
        return None, None
    return window, None if set(types) == {SLIDING} else types
