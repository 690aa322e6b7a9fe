"""Tensors to the number formats of a GGUF file: F32, F16, BF16 and Q8_0.

Q8_0 keeps 32 numbers as a float16 scale d and whole numbers q from -127 to 127, value = d * q,
where d is the largest magnitude over 127. Halves round away from zero, as in ggml: the bytes are
those that llama.cpp writes. Not here: decoding and block sizes (gguf_blocks.py).
Source: quantize_row_q8_0_ref of ggml; equal bytes are proven in the tests.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from llmlab.errors import ModelError
from llmlab.model.gguf_blocks import FORMATS, BlockFormat

_CHUNK_VALUES = 1 << 22  # encoded at once: keeps the temporaries near 50 MB whatever the tensor


def format_named(name: str) -> BlockFormat:
    """Return the format of a name such as `Q8_0`."""
    return next(block_format for block_format in FORMATS.values() if block_format.name == name)


def encoded(tensor: Tensor, block_format: BlockFormat, name: str) -> Iterator[np.ndarray]:
    """Yield the bytes of a tensor in a format, some blocks at a time.

    Args:
        tensor: any shape and float dtype; a whole number of blocks.
        block_format: F32, F16, BF16 or Q8_0.
        name: of the tensor, for the error.

    Raises:
        ModelError: a number is too large for the format, or none at all.
    """
    encode = _ENCODERS[block_format.name]
    for chunk in tensor.reshape(-1).split(_CHUNK_VALUES):
        packed = encode(chunk)
        if packed is None:
            raise ModelError(
                f"{name} has the number {_worst(chunk)}, which {block_format.name} cannot hold; "
                "export with --type bf16 or f32"
            )
        yield packed.view(torch.uint8).reshape(-1).numpy()


def _f32(values: Tensor) -> Tensor:
    return values.float()


def _f16(values: Tensor) -> Tensor | None:
    halves = values.half()
    return halves if halves.isfinite().all() else None


def _bf16(values: Tensor) -> Tensor:
    return values.bfloat16()


def _q8_0(values: Tensor) -> Tensor | None:
    blocks = values.float().view(-1, 32)
    scale = blocks.abs().amax(1, keepdim=True) / 127  # (blocks, 1)
    halves = scale.half()
    if not halves.isfinite().all():
        return None
    # Where the scale's inverse overflows, the scale itself is 0 in float16 whatever q says.
    inverse = scale.reciprocal().nan_to_num_(nan=0.0, posinf=0.0)
    steps = blocks * inverse
    whole = steps.trunc()
    whole += steps.sub_(whole).mul_(2).trunc_()  # halves away from zero, exactly
    packed = torch.empty(len(blocks), 34, dtype=torch.uint8)
    packed[:, :2] = halves.view(torch.uint8)
    packed[:, 2:] = whole.to(torch.int8).view(torch.uint8)
    return packed


def _worst(values: Tensor) -> float:
    """Return a number that is not one, or else the largest magnitude."""
    wide = values.float()
    odd = wide[~wide.isfinite()]
    return odd[0].item() if len(odd) else wide.abs().max().item()


_ENCODERS: dict[str, Callable[[Tensor], Tensor | None]] = {
    "F32": _f32,
    "F16": _f16,
    "BF16": _bf16,
    "Q8_0": _q8_0,
}
